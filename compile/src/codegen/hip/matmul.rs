//! Matrix products: a kernel for one row ([`one`](super::one)), bound by reading weights, one for each range of few rows, and one for many.

use bundle_format::gpu::{Arg, Extent, Kernel};
use bundle_format::plan::{Dim, Segment, Variant};
use kernels::pack::fragment::FRAGMENT;

use super::RANGES;
use super::regions;
use super::stability;
use super::stages;
use super::target::Chip;
use crate::codegen::gpu::floats::FLOAT_ROWS;
use crate::codegen::gpu::kernels::{ExpertProduct, Parameters, Product, Prologue, Writer, variant};
use crate::codegen::gpu::segments::{Items, by_format, format, is_f32};
use crate::codegen::gpu::work::Turns;
use crate::error::Error;

/// Wavefronts that a vector unit has under way where memory is to be kept busy.
const WAVES_PER_UNIT: u32 = 8;

/// Wavefronts of a block, at most.
pub const MOST_WAVES: u32 = 16;

/// Variants of a matrix product.
pub fn matmul(chip: &Chip, writer: &mut Writer, product: &Product) -> Result<Vec<Variant>, Error> {
    let Product {
        x,
        prologue,
        segments,
    } = *product;
    let extent = writer.plan.buffers[x as usize].extent;
    let limit = writer.limit(extent);
    let apart = regions::behind(writer, extent, segments)?;
    let mut products = Products {
        chip,
        writer,
        x,
        experts: None,
    };
    let mut variants = Vec::new();
    let mut first = 1;
    for last in RANGES.into_iter().chain([limit]) {
        let last = last.min(limit);
        if first > last {
            continue;
        }
        let ways = stability::ways(chip.profiles(), first, |choices| Way {
            behind: apart.is_some() && choices.rope_kv_apart,
            norm: match prologue {
                None => Norm::None,
                Some(_) if choices.norm_apart => Norm::Apart,
                Some(_) if last == 1 && products.is_staged() => Norm::Inside,
                Some(_) => Norm::Before,
            },
        });
        for (profiles, way) in ways {
            let (segments, behind) = match (&apart, way.behind) {
                (Some((sums, behind)), true) => (&sums[..], &behind[..]),
                _ => (segments, &[][..]),
            };
            let mut kernels = Vec::new();
            if let (Some(region), Norm::Before | Norm::Apart) = (prologue, way.norm) {
                let apart = way.norm == Norm::Apart;
                kernels.extend(regions::before(products.writer, extent, region, apart)?);
            }
            let mut rows = 1;
            for (i, run) in by_format(products.writer.plan, segments)?
                .into_iter()
                .enumerate()
            {
                let inside = match (prologue, way.norm) {
                    (Some(region), Norm::Inside) => Some(Prologue {
                        region,
                        stores: i == 0,
                    }),
                    _ => None,
                };
                let (kernel, of_block) = match last {
                    _ if is_f32(products.writer.plan, &run) => {
                        let rows = last.min(FLOAT_ROWS);
                        let kernel = products.writer.floats(x, &run, false, rows, inside)?;
                        (kernel, rows)
                    }
                    1 => (products.one(&run, inside)?, 1),
                    _ => {
                        let columns = match first {
                            ..=16 => 1,
                            17..=32 => 2,
                            _ => 4,
                        };
                        products.more(&run, columns)?
                    }
                };
                rows = of_block;
                kernels.push(kernel);
            }
            kernels.extend_from_slice(behind);
            stages::resolve(products.writer.plan, &mut kernels, last);
            let reason = reason(first, last, rows, way);
            let mut made = variant(first, last, kernels, rows, &reason);
            made.profiles = profiles;
            variants.push(made);
        }
        first = last + 1;
    }
    Ok(variants)
}

/// What is a kernel of its own of a product: the rotation and KV write behind it, and the norm before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    behind: bool,
    norm: Norm,
}

/// Where a product's input is normed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Norm {
    /// By another launch, if at all.
    None,
    /// By each block for itself.
    Inside,
    /// By a kernel before.
    Before,
    /// By a kernel behind the one that adds the residual.
    Apart,
}

/// Variants of a product of pairs of a token and one of its experts.
pub fn experts(
    chip: &Chip,
    writer: &mut Writer,
    product: &ExpertProduct,
) -> Result<Vec<Variant>, Error> {
    let ExpertProduct { used, segments, .. } = *product;
    let runs = by_format(writer.plan, segments)?;
    let limit = writer.limit(Dim::Tokens);
    // Rows of a block as an expert has them, of which many have some more than the mean.
    let columns = |tokens: u32| {
        let mean = f64::from(tokens * used) / f64::from(product.experts);
        match mean + mean.sqrt() {
            ..=16.0 => 1,
            ..=48.0 => 2,
            _ => 4,
        }
    };
    let mut variants = Vec::new();
    let mut first = 1;
    let ends: Vec<u32> = RANGES.into_iter().chain([limit]).collect();
    for (i, &last) in ends.iter().enumerate() {
        let last = last.min(limit);
        let next = ends.get(i + 1).map_or(last, |&next| next.min(limit));
        if first > last || last > 1 && last < next && columns(last) == columns(next) {
            continue;
        }
        let ways = stability::ways(chip.profiles(), first, |choices| choices.check_indices);
        for (profiles, checked) in ways {
            let mut products = Products {
                chip,
                writer: &mut *writer,
                x: product.x,
                experts: Some(Experts {
                    product,
                    last,
                    checked,
                }),
            };
            let mut kernels = Vec::new();
            let mut rows = 1;
            for run in &runs {
                let kernel = match last {
                    1 => products.one(run, None)?,
                    _ => {
                        let (kernel, of_block) = products.more(run, columns(last))?;
                        rows = of_block;
                        kernel
                    }
                };
                kernels.push(kernel);
            }
            let mut reason = match last {
                1 => "one token: the weights of its experts alone".to_string(),
                _ => format!("up to {last} tokens: blocks of up to {rows} rows of an expert"),
            };
            if checked {
                reason.push_str("; places and tokens checked");
            }
            let begin = (first - 1) * used + 1;
            let mut made = variant(begin, last * used, kernels, rows, &reason);
            made.profiles = profiles;
            variants.push(made);
        }
        first = last + 1;
    }
    Ok(variants)
}

/// Why a range of rows is done as it is.
fn reason(first: u32, last: u32, rows: u32, way: Way) -> String {
    let mut reason = match first {
        1 if last == 1 => "one row: dot products of codes as they are, sums scaled".to_string(),
        _ if last <= RANGES[RANGES.len() - 1] => {
            format!("up to {last} rows: bound by reading weights, {rows} rows share them")
        }
        _ => format!("many rows: {rows} of them share a weight, which goes through registers"),
    };
    reason.push_str(match way.norm {
        Norm::None => "",
        Norm::Inside => "; each block norms it for itself",
        Norm::Before => "; normed before",
        Norm::Apart => "; normed before, by kernels of a stream each",
    });
    if way.behind {
        reason.push_str("; rotation and KV write apart");
    }
    reason
}

/// Chooses the kernels of a product.
pub struct Products<'a, 'w> {
    pub chip: &'a Chip,
    pub writer: &'a mut Writer<'w>,
    pub x: u32,
    /// Whose product it is, where experts have one each.
    pub experts: Option<Experts<'a>>,
}

/// A product of experts, for steps of up to `last` tokens.
#[derive(Clone, Copy)]
pub struct Experts<'a> {
    pub product: &'a ExpertProduct<'a>,
    pub last: u32,
    /// Whether what a router wrote is held within what there is.
    pub checked: bool,
}

impl Experts<'_> {
    /// The most blocks of up to so many rows that there are.
    fn blocks(&self, rows: u32) -> u32 {
        let pairs = self.last * self.product.used;
        pairs.min(self.product.experts + pairs / rows)
    }

    /// Blocks that there are at least: of the experts that one token goes to.
    fn together(&self) -> u32 {
        self.product.used
    }
}

/// How the wavefronts of a block divide an item: `across` of them its tiles, `tiles` each, and `along` its columns.
#[derive(Clone, Copy)]
pub struct Division {
    pub across: u32,
    pub tiles: u32,
    pub along: u32,
}

impl Division {
    pub fn group(self) -> u32 {
        self.across * self.tiles
    }

    pub fn threads(self) -> u32 {
        32 * self.across * self.along
    }
}

impl Products<'_, '_> {
    pub fn cols(&self) -> u32 {
        self.writer.plan.buffers[self.x as usize].cols
    }

    pub fn of_rows(&self) -> bool {
        self.writer.plan.buffers[self.x as usize].extent == Dim::Rows
    }

    /// Experts that share a weight's rows; 1 where there are none.
    pub fn count(&self) -> u32 {
        self.experts.map_or(1, |e| e.product.experts)
    }

    /// Tiles of all segments (of one expert), and of the largest unit that is summed over, which lies in one item.
    pub fn tiles(&self, run: &[&Segment]) -> Result<(u32, u32), Error> {
        let all = run.iter().map(|s| self.writer.tiles(s)).sum::<u32>() / self.count();
        let units = run.iter().map(|s| self.writer.unit_tiles(s));
        let whole = units.clone().max().unwrap_or(1);
        if whole > MOST_WAVES || units.clone().any(|unit| !whole.is_multiple_of(unit)) {
            return Err(Error::Unsupported(format!(
                "heads of {} features that are summed over; this target has kernels for up to {}",
                whole * 16,
                MOST_WAVES * 16
            )));
        }
        Ok((all, whole))
    }

    /// Wavefronts along columns, so that all of them together keep memory busy, and each has `least` fragments.
    pub fn along(&self, waves: u32, across: u32, least: u32) -> u32 {
        let blocks = self.experts.map_or(1, |e| e.together());
        let wanted = (2 * self.chip.units * WAVES_PER_UNIT).div_ceil((waves * blocks).max(1));
        let fragments = self.cols() / FRAGMENT as u32;
        let most = (MOST_WAVES / across).min((fragments / least).max(1));
        wanted.next_power_of_two().min(1 << most.ilog2())
    }

    /// The kernel for blocks of so many times 16 rows, and how many rows that are.
    fn more(&mut self, run: &[&Segment], columns: u32) -> Result<(Kernel, u32), Error> {
        let encoding = self.writer.plan.weights[run[0].weight as usize].encoding;
        let format = format(encoding)?;
        let (all, whole) = self.tiles(run)?;
        // Two tiles of a wavefront share what it reads of x.
        let target = match columns {
            4 if all >= 4 * self.chip.units => 8,
            1 | 2 if all < 8 * self.chip.units => 2,
            _ => 4,
        };
        let group = whole * u32::div_ceil(target, whole);
        // Three wavefronts, or six, would each copy more of x than registers have room for.
        let tiles = match group.is_multiple_of(2) && (group / 2).is_power_of_two() {
            true => 2,
            false => 1,
        };
        let across = group / tiles;
        let along = match columns {
            4 => 1,
            _ => self.along(all / tiles, across, 1).min(4),
        };
        let division = Division {
            across,
            tiles,
            along,
        };
        let cols = self.cols();
        let shape = format!("ManyShape<{format}, {cols}, {across}, {along}, {tiles}, {columns}>");
        let stages = 2 * 16 * columns * (128 * along + 16);
        let sums = along * 16 * (division.group() * 16 + 4) * 4;
        let rows = 16 * columns;
        let shared = stages.max(sums);
        let name = if columns == 4 { "many" } else { "few" };
        let turns = (cols / FRAGMENT as u32).div_ceil(along);
        let kernel = self.kernel(name, run, division, &shape, shared, (rows, turns))?;
        Ok((kernel, rows))
    }

    /// Which rows a block of up to so many has (matmul.h, experts.h), of pairs that with a number.
    pub fn block(&self, rows: u32, number: &str, parameters: &mut Parameters) -> String {
        let Some(Experts {
            product, checked, ..
        }) = self.experts
        else {
            let of_rows = self.of_rows();
            return format!("const InOrder<{rows}, {of_rows}> block(counts);");
        };
        let (tokens, starts) = (parameters.len(), parameters.len() + 1);
        parameters.push(("const u32*", Arg::Buffer(product.tokens)));
        parameters.push(("const u32*", Arg::Buffer(product.starts)));
        let by_tokens = self.by_tokens();
        let ExpertProduct { experts, used, .. } = *product;
        format!(
            "const Pairs<{experts}, {used}, {rows}, {by_tokens}, {checked}> block(counts, p{tokens}, p{starts}, {number});"
        )
    }

    /// A kernel of more than one row.
    fn kernel(
        &mut self,
        name: &str,
        run: &[&Segment],
        division: Division,
        shape: &str,
        shared: u32,
        (rows, turns): (u32, u32),
    ) -> Result<Kernel, Error> {
        let (threads, features) = (division.threads(), division.group() * 16);
        let items = Items {
            experts: self.count(),
            ..Items::of(features, false, self.of_rows()).by(Some(threads))
        };
        let (segments, mut parameters) = self.writer.segments(self.x, run, &items)?;
        let block = self.block(rows, "blockIdx.y", &mut parameters);
        let leave = match self.experts {
            None => "",
            Some(_) => "\n    if (block.rows() == 0) return;",
        };
        let body = format!(
            "using S = {shape};\n    static_assert(S::THREADS == {threads} && S::SHARED == {shared}, \"as the plan says\");\n    \
             {block}{leave}\n    matmul_many<S>(p0, {segments}, block);"
        );
        let symbol = match self.experts {
            None => format!("matmul_{name}"),
            Some(_) => format!("experts_{name}"),
        };
        let mut kernel = self
            .writer
            .kernel(&symbol, parameters, &body, "", threads, 1);
        let symbol = kernel.symbol.clone();
        // Of a loop that stores: as many rows as sums have room for.
        let at_once = match rows {
            32.. if 2 * division.along * 16 * (features + 4) * 4 <= shared => 32,
            _ => rows.min(16),
        };
        let turns = Turns::Product {
            turns: f64::from(turns),
            alternatives: run.len() as u32,
            stores: stores(run, at_once * features, threads),
        };
        self.writer.turns.insert(symbol, turns);
        let items = run
            .iter()
            .map(|s| (self.writer.tiles(s) / self.count()).div_ceil(division.group()));
        kernel.grid = [
            Extent::Fixed(items.sum()),
            match self.experts {
                None => Extent::Rows(rows),
                Some(experts) => Extent::Fixed(experts.blocks(rows)),
            },
            Extent::Fixed(1),
        ];
        kernel.shared = shared;
        Ok(kernel)
    }
}

/// Turns of a loop that stores so many results: pairs of them where segments have such.
pub fn stores(run: &[&Segment], results: u32, threads: u32) -> f64 {
    let elements = |s: &&Segment| match s.epilogue.unit == 2 * s.epilogue.width {
        true => 0.5,
        false => 1.0,
    };
    let mean = run.iter().map(elements).sum::<f64>() / run.len() as f64;
    (f64::from(results) * mean / f64::from(threads)).max(1.0)
}
