//! The kernel of [`Op::Route`](bundle_format::plan::Op::Route) (`kernels::device`, route.cuh).

use bundle_format::gpu::{Arg, Extent};
use bundle_format::plan::{Dim, Variant};

use super::kernels::{Parameters, Writer};
use super::region::stride;
use crate::error::Error;

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

impl Writer<'_> {
    /// One variant for any number of tokens. Outputs: weights, places, tokens, starts.
    pub fn route(
        &mut self,
        logits: u32,
        renormalise: bool,
        scale: f32,
        [weights, places, tokens, starts]: [u32; 4],
    ) -> Result<Vec<Variant>, Error> {
        let buffers = &self.plan.buffers;
        let (experts, used) = (
            buffers[logits as usize].cols,
            buffers[weights as usize].cols,
        );
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
        let row = stride(&buffers[weights as usize]);
        if row != stride(&buffers[places as usize]) {
            return Err(Error::Bug("weights and places of other strides".into()));
        }
        let apart = stride(&buffers[logits as usize]);
        let parameters: Parameters = vec![
            ("const float*", Arg::Buffer(logits)),
            ("float*", Arg::Buffer(weights)),
            ("u32*", Arg::Buffer(places)),
            ("u32*", Arg::Buffer(tokens)),
            ("u32*", Arg::Buffer(starts)),
            ("u32*", Arg::Workspace),
            ("u32*", Arg::Tickets),
        ];
        let body = format!(
            "using S = route::Shape<{experts}, {used}, {limit}>;\n    static_assert(S::THREADS == {} && S::TOKENS == {}, \"as the plan \
             says\");\n    route::send<S, {apart}, {row}, {renormalise}>(counts, p0, p1, p2, p3, p4, p5, p6, \
             __uint_as_float(0x{:08x}u));",
            shape.threads,
            shape.tokens,
            scale.to_bits()
        );
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
}
