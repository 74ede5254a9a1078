//! Products of pairs of a token and one of its experts (`kernels::device`, matmul_experts.cuh): a kernel for one token, for
//! ranges of few tokens, and for many. Each block finds its work from where the experts' pairs begin: grids are the same
//! whatever the routing.

use bundle_format::gpu::{Arg, Extent, Kernel};
use bundle_format::plan::{Dim, Op, Segment, Variant};
use bundle_format::region::Region;
use kernels::pack::fragment::{Codes, FRAGMENT, TILE};

use super::RANGES;
use super::matmul::{MANY_FEATURES, MANY_ROWS, prev_power_of_two, unit_tiles};
use super::one::{DEPTH, Multiplier, WARPS, sums_shared};
use super::target::Chip;
use crate::codegen::gpu::kernels::{ExpertProduct, Writer, variant};
use crate::codegen::gpu::segments::{Items, by_format, form, format};
use crate::codegen::gpu::work::Turns;
use crate::error::Error;
use crate::lower::gpu::summed;

/// Bytes of a row of a stage of the kernel for many tokens, and floats of a row of its sums.
const STAGE_ROW: u32 = 128;
const SUMS_ROW: u32 = MANY_FEATURES + 4;

/// Variants of a product.
pub fn matmul(
    chip: &Chip,
    writer: &mut Writer,
    product: &ExpertProduct,
) -> Result<Vec<Variant>, Error> {
    let used = product.used;
    let limit = writer.limit(Dim::Tokens);
    let runs = by_format(writer.plan, product.segments)?;
    let mut products = Products::of(chip, writer, product, &runs);
    let mut variants: Vec<Variant> = Vec::new();
    let mut first = 1;
    let few = RANGES[RANGES.len() - 1];
    for last in RANGES.into_iter().chain([limit]) {
        let last = last.min(limit);
        if first > last {
            continue;
        }
        // What a range has in common with the next is decided by rows of an expert.
        if last < few && last > 1 && products.groups(last) == products.groups(few.min(limit)) {
            continue;
        }
        let mut kernels = Vec::new();
        let mut rows = 1;
        for run in &runs {
            let (kernel, of_block) = match last {
                1 => match products.one(run, None)? {
                    Some(kernel) => (kernel, 1),
                    None => products.few(run, 1)?,
                },
                _ if last <= few => products.few(run, last)?,
                _ => products.many(run)?,
            };
            rows = of_block;
            kernels.push(kernel);
        }
        let reason = match last {
            1 => "one token: the weights of its experts alone".to_string(),
            _ if last <= few => format!(
                "up to {last} tokens: blocks of up to {rows} rows of an expert, bound by reading weights"
            ),
            _ => format!("many tokens: tiles of up to {rows} rows of an expert, found by the list"),
        };
        let begin = (first - 1) * used + 1;
        variants.push(variant(begin, last * used, kernels, rows, &reason));
        first = last + 1;
    }
    Ok(variants)
}

/// A kernel of one token for launch `index`, which sums what the one before it gives for each of the token's experts.
pub fn join(chip: &Chip, writer: &mut Writer, index: usize) -> Result<Option<Kernel>, Error> {
    let plan = writer.plan;
    let (first, second) = (&plan.launches[index - 1].op, &plan.launches[index].op);
    let (Some(y), Op::Region { region, .. }) = (summed(first, second), second) else {
        return Ok(None);
    };
    let before = index.checked_sub(2).map(|i| &plan.launches[i].op);
    let product = ExpertProduct::of(plan, first, before)?;
    let runs = by_format(plan, product.segments)?;
    let mut products = Products::of(chip, writer, &product, &runs);
    match products.by_tokens() {
        true => Ok(None),
        false => products.one(&runs[0], Some((region, y))),
    }
}

struct Products<'a, 'w> {
    chip: &'a Chip,
    writer: &'a mut Writer<'w>,
    product: &'a ExpertProduct<'a>,
    ahead: bool,
}

impl<'a, 'w> Products<'a, 'w> {
    fn of(
        chip: &'a Chip,
        writer: &'a mut Writer<'w>,
        product: &'a ExpertProduct<'a>,
        runs: &[Vec<&Segment>],
    ) -> Self {
        Products {
            chip,
            writer,
            product,
            // Kernels of products let the next start when the list is there; the first of two can't tell the second.
            ahead: product.follows && runs.len() == 1,
        }
    }

    fn cols(&self) -> u32 {
        self.writer.plan.buffers[self.product.x as usize].cols
    }

    /// Whether x has rows of tokens, which the list of pairs finds.
    fn by_tokens(&self) -> bool {
        self.writer.plan.buffers[self.product.x as usize].extent == Dim::Tokens
    }

    /// Rows that an expert has of so many tokens, with some more than on average.
    fn usual_rows(&self, tokens: u32) -> f64 {
        let mean = f64::from(tokens * self.product.used) / f64::from(self.product.experts);
        mean + 1.5 * mean.sqrt()
    }

    /// Groups of eight rows that a block of the kernel for few tokens has.
    fn groups(&self, tokens: u32) -> u32 {
        let rows = self.usual_rows(tokens).ceil() as u32;
        rows.min(tokens).div_ceil(8).next_power_of_two().min(8)
    }

    /// The most blocks that the pairs of so many tokens make.
    fn blocks(&self, tokens: u32, rows: u32) -> u32 {
        let pairs = tokens * self.product.used;
        pairs.min(self.product.experts + pairs / rows)
    }

    fn tiles(&self, segment: &Segment) -> u32 {
        self.writer.tiles(segment) / self.product.experts
    }

    fn items(&self, features: u32, tiled: bool) -> Items {
        Items {
            experts: self.product.experts,
            ..Items::of(features, tiled, false)
        }
    }

    /// A kernel that takes the list besides x and the segments: the names of tokens and starts in its body.
    fn list(&self, parameters: &mut Vec<(&'static str, Arg)>) -> (String, String) {
        let at = parameters.len();
        parameters.push(("const u32*", Arg::Buffer(self.product.tokens)));
        parameters.push(("const u32*", Arg::Buffer(self.product.starts)));
        (format!("p{at}"), format!("p{}", at + 1))
    }

    /// The kernel for one token, none where it doesn't fit; with a region that sums over its experts, in place of the rows of a buffer.
    fn one(
        &mut self,
        run: &[&Segment],
        sum: Option<(&Region, u32)>,
    ) -> Result<Option<Kernel>, Error> {
        let (cols, used, experts) = (self.cols(), self.product.used, self.product.experts);
        let encoding = self.writer.plan.weights[run[0].weight as usize].encoding;
        let (format, multiplier) = (format(encoding)?, Multiplier::of(form(encoding)?));
        // Where each place has a row of its own, they are multiplied together.
        let xs = match self.by_tokens() {
            true => 1,
            false => used,
        };
        let steps = (cols / FRAGMENT as u32).div_ceil(multiplier.fragments());
        let whole = (cols / FRAGMENT as u32).is_multiple_of(multiplier.fragments());
        let sums_over = unit_tiles(self.writer, run) > 1;
        if sums_over || xs > WARPS || (xs > 1 && !whole) {
            return Ok(None);
        }
        let along = prev_power_of_two(steps).min(prev_power_of_two(WARPS / xs));
        let (warps, features) = (along * xs, 16 * xs);
        let threads = warps * 32 + 32;
        let shared = multiplier.shared(cols * xs) + sums_shared(along, features);
        if shared > self.chip.shared - 1024 {
            return Ok(None);
        }
        let items = self.items(TILE as u32, false).by(Some(32));
        let (segments, mut parameters) = match sum {
            None => self.writer.segments(self.product.x, run, &items)?,
            Some(sum) => self.writer.summed(self.product.x, run[0], &items, sum)?,
        };
        let (_, starts) = self.list(&mut parameters);
        let ahead = self.ahead;
        let product = format!("{format}, {cols}, {warps}, {xs}, {used}, {segments}");
        let own = steps.div_ceil(along);
        let depth = match xs {
            1 => DEPTH.min(own),
            // A block has one item or two: all of it at once, if it isn't much.
            _ => own.min(3),
        };
        let depth = self
            .writer
            .most
            .get(&product)
            .map_or(depth, |&m| depth.min(m));
        let body = format!(
            "using S = OneShape<{format}, {cols}, {warps}, {xs}, {depth}, {xs}>;\n    static_assert(S::THREADS == {threads} && \
             S::SHARED == {shared}, \"as the plan says\");\n    matmul_one_experts<S, {experts}, {used}, {ahead}>(p0, {starts}, {segments});"
        );
        let bounds = format!("__launch_bounds__({threads}, 1) ");
        let mut kernel = self
            .writer
            .kernel("experts_one", parameters, &body, &bounds, threads, 1);
        self.writer
            .depths
            .insert(kernel.symbol.clone(), (product, depth));
        let tiles: u32 = run.iter().map(|s| self.tiles(s)).sum();
        let items = if xs == 1 { tiles * used } else { tiles };
        let ctas = (WARPS / warps).clamp(1, 4);
        kernel.grid[0] = Extent::Fixed(items.min(self.chip.processors * ctas));
        kernel.shared = shared;
        Ok(Some(kernel))
    }

    /// The kernel for up to `last` tokens, and rows of a block.
    fn few(&mut self, run: &[&Segment], last: u32) -> Result<(Kernel, u32), Error> {
        let (cols, used, experts) = (self.cols(), self.product.used, self.product.experts);
        let encoding = self.writer.plan.weights[run[0].weight as usize].encoding;
        let (format, (codes, _)) = (format(encoding)?, form(encoding)?);
        let groups = self.groups(last);
        let most = if groups > 1 { 8 } else { 16 };
        let fragments = cols / FRAGMENT as u32;
        let tiles: Vec<u32> = run.iter().map(|s| self.tiles(s)).collect();
        let whole = unit_tiles(self.writer, run);
        // Warps divide columns as long as each has some fragments of an item, then its tiles: an item costs a warp as much as three
        // fragments do.
        let along = prev_power_of_two((fragments / 6).max(1)).min(most);
        let possible = |&group: &u32| {
            group.is_multiple_of(whole) && tiles.iter().all(|t| t.is_multiple_of(group))
        };
        let Some(group) = [16, 8, 4, 2, 1]
            .into_iter()
            .filter(|&group| group * along <= most)
            .find(possible)
        else {
            return Err(Error::Unsupported(format!(
                "experts of {} tiles of 16 features, of which {whole} are summed over; compile this model for cpu",
                tiles[0]
            )));
        };
        let along = along.min(prev_power_of_two(most / group));
        let warps = group * along;
        let own = fragments.div_ceil(along);
        let depth = match codes {
            _ if groups > 4 => 1,
            Codes::Nibbles if groups == 1 && own >= 3 => [4, 3]
                .into_iter()
                .min_by_key(|&depth| own.next_multiple_of(depth))
                .unwrap_or(4),
            _ => own.min(2),
        };
        // Of blocks of eight rows, a warp apart finishes items.
        let (apart, sets) = match groups {
            1 => (Some(32), 3),
            _ => (None, 2),
        };
        let items = self.items(group * TILE as u32, false).by(apart);
        let (segments, mut parameters) = self.writer.segments(self.product.x, run, &items)?;
        let (tokens, starts) = self.list(&mut parameters);
        let (by_tokens, ahead) = (self.by_tokens(), self.ahead);
        let rows = 8 * groups;
        let (blocks, pairs) = (self.blocks(last, rows), last * used);
        let product = format!("experts {format}, {cols}, {warps}, {group}, {groups}, {segments}");
        let depth = self
            .writer
            .most
            .get(&product)
            .map_or(depth, |&m| depth.min(m));
        let shape =
            format!("MatMulShape<{format}, {cols}, {warps}, {group}, 1, {depth}, {groups}>");
        let threads = warps * 32 + apart.unwrap_or(0);
        let sums = sets * along * rows * (group * 16 + 4) * 4 + 32;
        let body = format!(
            "using S = {shape};\n    static_assert(ExpertsShape<S>::THREADS == {threads} && ExpertsShape<S>::SHARED == {sums}, \"as the plan \
             says\");\n    matmul_experts<S, {experts}, {blocks}, {pairs}, {by_tokens}, {ahead}>(p0, {tokens}, {starts}, {segments});"
        );
        let bounds = format!("__launch_bounds__({threads}, 1) ");
        let mut kernel = self
            .writer
            .kernel("experts", parameters, &body, &bounds, threads, 1);
        self.writer
            .depths
            .insert(kernel.symbol.clone(), (product, depth));
        kernel.grid[0] = Extent::Fixed(self.chip.processors);
        let items: u32 = tiles.iter().map(|t| t / group).sum();
        // Of each block of an expert's rows.
        let of_block = f64::from(items) / f64::from(self.chip.processors);
        let turns = Turns::Product {
            turns: f64::from(own.div_ceil(depth)) * of_block,
            alternatives: run.len() as u32,
            stores: of_block,
        };
        self.writer.turns.insert(kernel.symbol.clone(), turns);
        kernel.shared = sums + blocks * 8 + if by_tokens { pairs * 4 } else { 0 };
        Ok((kernel, rows))
    }

    /// The kernel for many tokens, and rows of a block.
    fn many(&mut self, run: &[&Segment]) -> Result<(Kernel, u32), Error> {
        let (cols, experts) = (self.cols(), self.product.experts);
        let encoding = self.writer.plan.weights[run[0].weight as usize].encoding;
        let format = format(encoding)?;
        let limit = self.writer.limit(Dim::Tokens);
        if !limit.is_multiple_of(MANY_ROWS) {
            return Err(Error::Bug(format!(
                "steps of up to {limit} tokens, whose rows are stored in tiles of {MANY_ROWS}"
            )));
        }
        let rows = match self.usual_rows(limit) <= 64.0 {
            true => 64,
            false => 128,
        };
        let blocks = self.blocks(limit, rows);
        let sums = rows * SUMS_ROW * 4;
        // Hopper has a warp that copies, and sums beside the stages.
        let (threads, stages, shared) = match (self.chip.hopper, rows) {
            (true, 64) => (288, 8, 8 * rows * STAGE_ROW + sums + 1024),
            (true, _) => (288, 6, 6 * rows * STAGE_ROW + sums + 1024),
            (false, _) => (256, 4, (4 * rows * STAGE_ROW).max(sums)),
        };
        let items = self.items(MANY_FEATURES, true).by(Some(256));
        let (segments, mut parameters) = self.writer.segments(self.product.x, run, &items)?;
        let (tokens, starts) = self.list(&mut parameters);
        let (by_tokens, ahead) = (self.by_tokens(), self.ahead);
        let body = format!(
            "using S = ManyShape<{format}, {cols}, {rows}, {stages}>;\n    static_assert(S::THREADS == {threads} && S::STRIDE == \
             {SUMS_ROW}, \"as the plan says\");\n    matmul_many_experts<S, {experts}, {blocks}, {by_tokens}, {ahead}>(p0, {tokens}, {starts}, \
             {segments});"
        );
        let bounds = format!("__launch_bounds__({threads}, 1) ");
        let mut kernel = self
            .writer
            .kernel("experts_many", parameters, &body, &bounds, threads, 1);
        kernel.grid[0] = Extent::Fixed(self.chip.processors);
        kernel.shared = shared + blocks * 8;
        Ok((kernel, rows))
    }
}
