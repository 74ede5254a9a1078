//! The kernel of [`Op::Route`](bundle_format::plan::Op::Route) (`kernels::device`, route.cuh).

use bundle_format::gpu::{Arg, Extent, Kernel};
use bundle_format::plan::{Dim, Op, Segment, Variant};

use super::floats;
use super::kernels::{Parameters, Prologue, Writer};
use super::region::stride;
use super::segments::is_f32;
use crate::error::Error;
use crate::lower::gpu::routed;

/// The most experts that there are, and that a token goes to.
const MAX_EXPERTS: u32 = 1024;
const MAX_USED: u32 = 32;

/// The most pairs of a token and an expert.
const MAX_PAIRS: u32 = (1 << 16) - 1;

/// Bytes of shared memory for the bits of tokens: with what else a block has, no more than every chip gives it.
const MAX_MASKS: u32 = 40 << 10;

/// The constants of a shape in route.cuh.
struct Shape {
    /// Tokens of a block.
    tokens: u32,
    threads: u32,
    masks: u32,
}

impl Shape {
    fn of(experts: u32, max_tokens: u32) -> Shape {
        let group = experts.next_multiple_of(32);
        let tokens = (256 / group).max(1);
        Shape {
            tokens,
            threads: group * tokens,
            masks: (experts + 1) * (max_tokens.div_ceil(32) | 1) * 4,
        }
    }
}

/// What a route is made of, in the order in which its kernels take it.
struct Route<'a> {
    logits: u32,
    /// Weights, places, tokens, starts.
    outputs: &'a [u32; 4],
}

impl Route<'_> {
    fn parameters(&self) -> Parameters {
        let [weights, places, tokens, starts] = *self.outputs;
        vec![
            ("const float*", Arg::Buffer(self.logits)),
            ("float*", Arg::Buffer(weights)),
            ("u32*", Arg::Buffer(places)),
            ("u32*", Arg::Buffer(tokens)),
            ("u32*", Arg::Buffer(starts)),
        ]
    }
}

impl Writer<'_> {
    /// The shape of a route, and its expression.
    fn route_shape(&self, route: &Route) -> Result<(Shape, String), Error> {
        let buffers = &self.plan.buffers;
        let [weights, places, ..] = *route.outputs;
        let experts = buffers[route.logits as usize].cols;
        let used = buffers[weights as usize].cols;
        let limit = self.limit(Dim::Tokens);
        let shape = Shape::of(experts, limit);
        let pairs = limit.saturating_mul(used);
        if experts > MAX_EXPERTS || used > MAX_USED || shape.masks > MAX_MASKS || pairs > MAX_PAIRS
        {
            return Err(Error::Unsupported(format!(
                "{experts} experts, of which each of {limit} tokens goes to {used}; this target has kernels for up to {MAX_EXPERTS}, \
                 of which a token goes to {MAX_USED}, {MAX_PAIRS} pairs and {MAX_MASKS} bits of a token and an expert in a step, in \
                 bytes: compile the model for cpu"
            )));
        }
        if stride(&buffers[weights as usize]) != stride(&buffers[places as usize]) {
            return Err(Error::Bug("weights and places of other strides".into()));
        }
        let text = format!(
            "using S = route::Shape<{experts}, {used}, {limit}>;\n    static_assert(S::THREADS == {} && S::TOKENS == {}, \"as the plan \
             says\");",
            shape.threads, shape.tokens
        );
        Ok((shape, text))
    }

    /// One variant for any number of tokens. Outputs: weights, places, tokens, starts.
    pub fn route(
        &mut self,
        logits: u32,
        renormalise: bool,
        scale: f32,
        outputs: [u32; 4],
    ) -> Result<Vec<Variant>, Error> {
        let route = Route {
            logits,
            outputs: &outputs,
        };
        let (shape, text) = self.route_shape(&route)?;
        let buffers = &self.plan.buffers;
        let (row, apart) = (
            stride(&buffers[outputs[0] as usize]),
            stride(&buffers[logits as usize]),
        );
        let used = buffers[outputs[0] as usize].cols;
        let mut parameters = route.parameters();
        parameters.push(("u32*", Arg::Workspace));
        parameters.push(("u32*", Arg::Tickets));
        let body = format!(
            "{text}\n    route::send<S, {apart}, {row}, {renormalise}>(counts, p0, p1, p2, p3, p4, p5, p6, \
             __uint_as_float(0x{:08x}u));",
            scale.to_bits()
        );
        let limit = self.limit(Dim::Tokens);
        let mut kernel = self.kernel("route", parameters, &body, "", shape.threads, 1);
        kernel.workspace = u64::from(limit) * u64::from(used) * 4;
        kernel.tickets = 1;
        let reason = "a thread an expert; the last block lists the pairs";
        let mut variants = self.every_row(Dim::Tokens, kernel, reason);
        for variant in &mut variants {
            for kernel in &mut variant.kernels {
                kernel.grid[0] = Extent::Rows(shape.tokens);
            }
        }
        Ok(variants)
    }

    /// A kernel of one token for a route and the launch before, where that multiplies with the router's weights and no others.
    pub fn route_behind(&mut self, first: &Op, second: &Op) -> Result<Option<Kernel>, Error> {
        let Some(router) = self.router(first, second)? else {
            return Ok(None);
        };
        if !router.others.is_empty() {
            return Ok(None);
        }
        let Router {
            body,
            parameters,
            blocks,
            ..
        } = router;
        let mut kernel = self.kernel("router", parameters, &body, "", floats::THREADS, 1);
        kernel.grid[0] = Extent::Fixed(blocks);
        kernel.tickets = 1;
        Ok(Some(kernel))
    }

    /// What blocks of [`floats::THREADS`] threads do for a route behind a launch that multiplies with the router's weights: the last of
    /// them sends the token when all have done so. None where the launch before is another one, or a route has other threads.
    pub fn router<'s>(&mut self, first: &'s Op, second: &Op) -> Result<Option<Router<'s>>, Error> {
        let (
            Op::MatMul {
                x,
                prologue,
                segments,
            },
            Op::Route {
                logits,
                renormalise,
                scale,
                weights,
                places,
                tokens,
                starts,
            },
        ) = (first, second)
        else {
            return Ok(None);
        };
        if !routed(self.plan, first, second) {
            return Ok(None);
        }
        let route = Route {
            logits: *logits,
            outputs: &[*weights, *places, *tokens, *starts],
        };
        let (shape, text) = self.route_shape(&route)?;
        if shape.threads != floats::THREADS {
            return Ok(None);
        }
        let of_router = |s: &&Segment| is_f32(self.plan, &[s]);
        let (run, others): (Vec<&Segment>, Vec<&Segment>) = segments.iter().partition(of_router);
        let prologue = prologue.as_ref().map(|region| Prologue {
            region,
            stores: true,
        });
        let (product, mut parameters, blocks) = self.floats_of(*x, &run, false, 1, prologue)?;
        let at = parameters.len();
        parameters.extend(route.parameters());
        parameters.push(("u32*", Arg::Tickets));
        let given: Vec<String> = (at..parameters.len()).map(|i| format!("p{i}")).collect();
        let body = format!(
            "{product}\n    {text}\n    route::send_behind<S, {renormalise}, {blocks}>(counts, {}, __uint_as_float(0x{:08x}u));",
            given.join(", "),
            scale.to_bits()
        );
        Ok(Some(Router {
            body,
            parameters,
            blocks,
            others,
        }))
    }
}

/// A router of one token, and its route.
pub struct Router<'s> {
    pub body: String,
    pub parameters: Parameters,
    pub blocks: u32,
    /// Segments of the router's launch that multiply with other weights.
    pub others: Vec<&'s Segment>,
}
