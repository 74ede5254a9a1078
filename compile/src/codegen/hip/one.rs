//! Products of one row (`kernels::device`, hip/matmul.h): what a block does, as a kernel of its own or as a part of one.

use bundle_format::gpu::{Extent, Kernel};
use bundle_format::plan::{Dim, Segment};
use bundle_format::region::Region;
use kernels::pack::fragment::{Codes, FRAGMENT, TILE};

use super::matmul::{Division, MOST_WAVES, Products, stores};
use crate::codegen::gpu::kernels::{Parameters, Prologue};
use crate::codegen::gpu::segments::{Items, form, format};
use crate::codegen::gpu::work::Turns;
use crate::error::Error;

/// Bytes of shared memory for rows of activations; longer ones are read through the caches.
const STAGED: u32 = 56 << 10;

/// Elements of a row that a thread has to norm, where a block can have enough of them.
const NORMED: u32 = 8;

/// What is asked of a product of one row.
#[derive(Default)]
pub struct How<'a> {
    pub prologue: Option<Prologue<'a>>,
    /// A region that sums what a token's experts give, in place of the rows of a buffer.
    pub sum: Option<(&'a Region, u32)>,
    /// The kernel's blocks have other work beside this.
    pub shared: Option<Shared>,
}

/// What a product has in common with others in a kernel.
#[derive(Clone, Copy)]
pub struct Shared {
    /// Wavefronts of a block.
    pub waves: u32,
    /// Fragments that each of them should have, that all end together.
    pub fragments: f64,
}

/// What blocks do for a product of one row.
pub struct One {
    pub body: String,
    pub blocks: u32,
    pub threads: u32,
    /// Bytes of shared memory.
    pub shared: u32,
    pub turns: Turns,
}

impl Products<'_, '_> {
    fn fragments(&self) -> u32 {
        self.cols() / FRAGMENT as u32
    }

    /// Whether a row of x lies in shared memory.
    pub fn is_staged(&self) -> bool {
        self.cols() * 2 <= STAGED
    }

    /// Whether x has rows of tokens, which the list of pairs finds.
    pub fn by_tokens(&self) -> bool {
        self.writer.plan.buffers[self.x as usize].extent == Dim::Tokens
    }

    /// Fragments of all tiles that one row is multiplied with.
    pub fn all_fragments(&self, run: &[&Segment]) -> Result<u32, Error> {
        let each = self.experts.map_or(1, |e| e.product.used);
        Ok(self.tiles(run)?.0 * each * self.fragments())
    }

    /// The kernel for one row, which a prologue may make.
    pub fn one(&mut self, run: &[&Segment], prologue: Option<Prologue>) -> Result<Kernel, Error> {
        let how = How {
            prologue,
            ..How::default()
        };
        let mut parameters = Parameters::new();
        let Some(one) = self.part(run, how, &mut parameters, "blockIdx.x")? else {
            return Err(Error::Bug("a product of one row without a kernel".into()));
        };
        let name = match self.experts {
            None => "matmul_one",
            Some(_) => "experts_one",
        };
        Ok(self.kernel_of(name, &one.body, parameters, &[&one]))
    }

    /// A kernel with blocks for each of these parts, one behind the other.
    pub fn kernel_of(
        &mut self,
        name: &str,
        body: &str,
        parameters: Parameters,
        parts: &[&One],
    ) -> Kernel {
        let threads = parts.first().map_or(0, |part| part.threads);
        let mut kernel = self.writer.kernel(name, parameters, body, "", threads, 1);
        kernel.grid[0] = Extent::Fixed(parts.iter().map(|part| part.blocks).sum());
        kernel.shared = parts.iter().map(|part| part.shared).max().unwrap_or(0);
        let turns = Turns::mean(parts.iter().map(|part| (part.turns, part.blocks)));
        self.writer.turns.insert(kernel.symbol.clone(), turns);
        kernel
    }

    /// What the blocks of a product of one row do, of which `at` is the expression of a block's number; none where it doesn't fit what is
    /// asked.
    pub fn part(
        &mut self,
        run: &[&Segment],
        how: How,
        parameters: &mut Parameters,
        at: &str,
    ) -> Result<Option<One>, Error> {
        let encoding = self.writer.plan.weights[run[0].weight as usize].encoding;
        let (format, (codes, _)) = (format(encoding)?, form(encoding)?);
        let depth = match codes {
            Codes::Nibbles | Codes::Five | Codes::Six => 4,
            Codes::Bytes | Codes::Half => 2,
        };
        let places = match (how.sum, self.experts) {
            (Some(_), Some(experts)) => experts.product.used,
            _ => 1,
        };
        let Some(division) = self.division(run, &how, places, depth)? else {
            return Ok(None);
        };
        let (across, along) = (division.across, division.along);
        let (threads, features) = (division.threads() * places, across * TILE as u32);
        let cols = self.cols();
        let staged = cols * 2 * places <= STAGED;
        let sums = along * places * (features + 4) * 4;
        let shared = if staged { cols * 2 * places } else { 0 } + sums;

        let items = Items {
            experts: self.count(),
            ..Items::of(features, false, self.of_rows()).by(Some(threads))
        };
        let x = parameters.len();
        let segments = match how.sum {
            None => self
                .writer
                .segments_behind(self.x, run, &items, parameters)?,
            Some(sum) if x == 0 => {
                let (made, own) = self.writer.summed(self.x, run[0], &items, sum)?;
                *parameters = own;
                made
            }
            Some(_) => return Err(Error::Bug("a sum behind another part".into())),
        };
        let count = self.count();
        let of_segment = |s: &&Segment| (self.writer.tiles(s) / count).div_ceil(across);
        let items: u32 = run.iter().map(of_segment).sum();
        // A block of experts has an item of one of them; where those are summed, of all.
        let (number, item, blocks) = match (how.sum, self.experts) {
            (None, Some(experts)) => (
                format!("({at}) / {items}"),
                format!("({at}) % {items}"),
                items * experts.product.used,
            ),
            _ => ("S::place()".to_string(), at.to_string(), items),
        };
        let block = self.block(1, &number, parameters);
        let leave = match (how.sum, self.experts) {
            (None, Some(_)) => "\n    if (block.rows() == 0) return;",
            _ => "",
        };
        let prologue = self.writer.prologue(self.x, how.prologue, parameters)?;
        let body = format!(
            "using S = OneShape<{format}, {cols}, {across}, {along}, {places}, {depth}, {staged}>;\n    static_assert(S::THREADS == \
             {threads} && S::SHARED == {shared}, \"as the plan says\");\n    {block}{leave}\n    matmul_one<S>(p{x}, {segments}, block, \
             {prologue}, {item});"
        );
        let turns = Turns::Product {
            turns: f64::from(self.fragments().div_ceil(along).div_ceil(depth)),
            alternatives: run.len() as u32,
            stores: stores(run, features, threads),
        };
        Ok(Some(One {
            body,
            blocks,
            threads,
            shared,
            turns,
        }))
    }

    /// How a block's wavefronts divide an item; none where they can't as is asked.
    fn division(
        &self,
        run: &[&Segment],
        how: &How,
        places: u32,
        depth: u32,
    ) -> Result<Option<Division>, Error> {
        let (all, whole) = self.tiles(run)?;
        let made = |across: u32, along: u32| {
            Ok(Some(Division {
                across,
                tiles: 1,
                along,
            }))
        };
        if how.sum.is_some() {
            return match whole == 1 && places <= MOST_WAVES {
                true => made(1, self.along(all, places, depth)),
                false => Ok(None),
            };
        }
        if let Some(Shared { waves, fragments }) = how.shared {
            let wanted = (f64::from(self.fragments()) / fragments).max(1.0);
            let mut along = (1 << wanted.log2() as u32).min(waves);
            while along > 1 && !(waves / along).is_multiple_of(whole) {
                along /= 2;
            }
            return match waves.is_multiple_of(along * whole) {
                true => made(waves / along, along),
                false => Ok(None),
            };
        }
        if how.prologue.is_some() {
            let along = self.along(all, whole, depth);
            let waves = (self.cols() / (32 * NORMED)).next_power_of_two();
            let waves = waves.min(MOST_WAVES);
            return made(whole * (waves / (along * whole)).max(1), along);
        }
        // Four tiles share a block's copy of x where there are many.
        let across = match all / 4 >= 4 * self.chip.units {
            true => whole * u32::div_ceil(4, whole),
            false => whole,
        };
        made(across, self.along(all, across, depth))
    }
}
