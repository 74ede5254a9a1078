//! The segments of a matrix product: the weights that one kernel multiplies with, and what becomes of the sums.

use std::fmt::Write as _;

use bundle_format::gpu::Arg;
use bundle_format::plan::{Encoding, Plan, Segment, Weight};
use bundle_format::region::Region;
use kernels::pack::fragment::{self, Codes, Scales, TILE};

use super::kernels::{Parameters, Writer};
use super::region::{self, Use};
use crate::error::Error;
use crate::lower::gpu::goes_together;

impl Writer<'_> {
    /// Tiles of a segment's weight.
    pub fn tiles(&self, segment: &Segment) -> u32 {
        self.plan.weights[segment.weight as usize]
            .rows
            .div_ceil(TILE as u32)
    }

    /// Tiles of a unit that is summed over; 1 where none is.
    pub fn unit_tiles(&self, segment: &Segment) -> u32 {
        match goes_together(&segment.epilogue, &self.plan.kv) {
            true => segment.epilogue.unit.div_ceil(TILE as u32),
            false => 1,
        }
    }

    /// A struct of segments: an expression that makes it of the parameters, the first of which is x.
    pub fn segments(
        &mut self,
        x: u32,
        run: &[&Segment],
        items: &Items,
    ) -> Result<(String, Parameters), Error> {
        let mut parameters = Parameters::new();
        let made = self.segments_behind(x, run, items, &mut parameters)?;
        Ok((made, parameters))
    }

    /// The same, of parameters behind others.
    pub fn segments_behind(
        &mut self,
        x: u32,
        run: &[&Segment],
        items: &Items,
        parameters: &mut Parameters,
    ) -> Result<String, Error> {
        let Items {
            features,
            tiled,
            of_rows,
            experts,
            ..
        } = *items;
        parameters.push(("const u16*", Arg::Buffer(x)));
        let mut next = parameters.len();
        let told = items.told();
        let mut members = String::new();
        let mut item = String::new();
        let mut left = String::new();
        let mut apart = String::new();
        let mut finish = String::new();
        let mut total = 0;
        for (i, segment) in run.iter().enumerate() {
            let weight = &self.plan.weights[segment.weight as usize];
            let rows = weight.rows / experts;
            let bytes = bytes_of(weight, features)?;
            let count = rows.div_ceil(features);
            let (name, pointers) = self.region_struct(&segment.epilogue)?;
            let region = format!("{name}<{tiled}>");
            parameters.push(("const u8*", Arg::Weight(segment.weight)));
            parameters.extend(pointers);
            let _ = write!(members, "    const u8* w{i};\n    {region} r{i};\n");
            let is_last = i + 1 == run.len();
            let guard = if is_last {
                String::new()
            } else {
                format!("if (i < {}) ", total + count)
            };
            let _ = writeln!(
                item,
                "        {guard}return w{i} + (u64)(i - {total}) * {bytes}u;"
            );
            let (name, all, each) = match weight.encoding {
                Encoding::F32 => ("features", rows, features),
                _ => ("tiles", rows.div_ceil(TILE as u32), features / TILE as u32),
            };
            if left.is_empty() {
                let _ = writeln!(left, "    __device__ int {name}(int i) const {{");
            }
            let _ = writeln!(
                left,
                "        {guard}return {all} - (i - {total}) * {each};"
            );
            if experts > 1 {
                if !rows.is_multiple_of(TILE as u32) {
                    return Err(Error::Unsupported(format!(
                        "'{}' has {rows} features of each expert; this target has kernels for multiples of {TILE}: compile \
                         the model for cpu",
                        weight.name
                    )));
                }
                let bytes = bytes_of(weight, rows)?;
                let _ = writeln!(apart, "        {guard}return {bytes}u;");
            }
            let epilogue = &segment.epilogue;
            let how = if goes_together(epilogue, &self.plan.kv) {
                "finish_units"
            } else if epilogue.unit == 2 * epilogue.width {
                "finish_pairs"
            } else {
                "finish_features"
            };
            let _ = writeln!(
                finish,
                "        {guard}return {how}{told}(r{i}, sums, stride, row0, rows, (i - {total}) * {features}, {features});"
            );
            total += count;
        }
        left.push_str("    }\n");
        // Where all threads are known, so are the tiles that the last item has: none is read that isn't there.
        if !self.chip.tells_threads() && !left.contains("features") {
            left.clear();
        }
        if experts > 1 {
            apart = format!("    __device__ u64 expert_bytes(int i) const {{\n{apart}    }}\n");
        }
        let text = format!(
            "struct @ {{\n    static constexpr int ITEMS = {total};\n    static constexpr bool OF_ROWS = {of_rows};\n{members}    \
             __device__ const u8* item(int i) const {{\n{item}    }}\n{left}{apart}    __device__ void finish(int i, int row0, const \
             float* sums, int stride, int rows) const {{\n{finish}    }}\n}};\n"
        );
        let name = self.named_struct("Segments", text);
        // Members in order: each weight, then its region of the pointers behind it.
        let mut values = Vec::new();
        for segment in run {
            let operands = segment.epilogue.operands.len();
            let region: Vec<String> = (next + 1..=next + operands)
                .map(|k| format!("p{k}"))
                .collect();
            values.push(format!("p{next}, {{{}}}", region.join(", ")));
            next += 1 + operands;
        }
        Ok(format!("{name}{{{}}}", values.join(", ")))
    }

    /// The struct of a segment of experts whose results for the pairs of a token are summed by a region, item by item: the sums of an
    /// item for all places come together, in place of the rows of `y`.
    pub fn summed(
        &mut self,
        x: u32,
        segment: &Segment,
        items: &Items,
        (region, y): (&Region, u32),
    ) -> Result<(String, Parameters), Error> {
        let weight = &self.plan.weights[segment.weight as usize];
        let (rows, features) = (weight.rows / items.experts, items.features);
        let (item, expert) = (bytes_of(weight, features)?, bytes_of(weight, rows)?);
        let (tiles, of_item) = (rows / TILE as u32, features / TILE as u32);
        let source = region::source("@", region, self.plan, Use::Sum { of: y })?;
        let name = self.named_struct("Region", source.text);
        let mut parameters: Parameters = vec![
            ("const u16*", Arg::Buffer(x)),
            ("const u8*", Arg::Weight(segment.weight)),
        ];
        parameters.extend(source.pointers);
        let told = items.told();
        let text = format!(
            "struct @ {{\n    static constexpr int ITEMS = {};\n    const u8* w0;\n    {name}<false> r0;\n    __device__ const u8* item(int \
             i) const {{ return w0 + (u64)i * {item}u; }}\n    __device__ int tiles(int i) const {{ return {tiles} - i * {of_item}; }}\n    \
             __device__ u64 expert_bytes(int) const {{ return {expert}u; }}\n    __device__ void finish(int i, int, const float* sums, int \
             stride, int) const {{ finish_places{told}(r0, sums, stride, i * {features}, {features}); }}\n}};\n",
            rows.div_ceil(features)
        );
        let name = self.named_struct("Segments", text);
        let pointers: Vec<String> = (2..parameters.len()).map(|k| format!("p{k}")).collect();
        let made = format!("{name}{{p1, {{{}}}}}", pointers.join(", "));
        Ok((made, parameters))
    }
}

/// How the kernel of a run of segments takes them.
#[derive(Clone, Copy, Debug)]
pub struct Items {
    /// Features of an item.
    pub features: u32,
    /// Whether f16 activations are stored in tiles.
    pub tiled: bool,
    /// Whether it has rows of logits.
    pub of_rows: bool,
    /// The threads that finish an item, where that is to be told (32: one warp of the block).
    pub threads: Option<u32>,
    /// Experts whose features a weight has, one after the other; items are those of one.
    pub experts: u32,
}

impl Items {
    /// Of a product without experts.
    pub fn of(features: u32, tiled: bool, of_rows: bool) -> Items {
        Items {
            features,
            tiled,
            of_rows,
            threads: None,
            experts: 1,
        }
    }

    pub fn by(self, threads: Option<u32>) -> Items {
        Items { threads, ..self }
    }

    /// The threads as the argument of a template, where they are to be told.
    fn told(&self) -> String {
        self.threads
            .map_or(String::new(), |threads| format!("<{threads}>"))
    }
}

/// Bytes of so many features of a weight, which are whole tiles where it lies in fragments.
fn bytes_of(weight: &Weight, features: u32) -> Result<u64, Error> {
    if weight.encoding == Encoding::F32 {
        return Ok(u64::from(weight.cols) * 4 * u64::from(features));
    }
    let tile = fragment::tile_bytes(weight.encoding, weight.cols as u64)
        .ok_or_else(|| no_fragments(&weight.name, weight.encoding))?;
    Ok(tile * u64::from(features / TILE as u32))
}

/// Segments of one format, in order: a kernel each. f32 is one that has no fragments.
pub fn by_format<'s>(plan: &Plan, segments: &'s [Segment]) -> Result<Vec<Vec<&'s Segment>>, Error> {
    let mut runs: Vec<(&'static str, Vec<&Segment>)> = Vec::new();
    for segment in segments {
        let name = match plan.weights[segment.weight as usize].encoding {
            Encoding::F32 => "F32",
            encoding => format(encoding)?,
        };
        match runs.iter_mut().find(|(known, _)| *known == name) {
            Some((_, run)) => run.push(segment),
            None => runs.push((name, vec![segment])),
        }
    }
    Ok(runs.into_iter().map(|(_, run)| run).collect())
}

/// Whether a run's weights are f32, which lie in no fragments.
pub fn is_f32(plan: &Plan, run: &[&Segment]) -> bool {
    plan.weights[run[0].weight as usize].encoding == Encoding::F32
}

/// How an encoding lies in fragments.
pub fn form(encoding: Encoding) -> Result<(Codes, Scales), Error> {
    fragment::form(encoding).ok_or_else(|| no_fragments("a weight", encoding))
}

/// The struct of an encoding in fragment.cuh.
pub fn format(encoding: Encoding) -> Result<&'static str, Error> {
    Ok(match encoding {
        Encoding::F32 => return Err(no_fragments("a weight", encoding)),
        Encoding::F16 => "F16",
        Encoding::BF16 => "BF16",
        Encoding::Q4_0 => "Q4_0",
        Encoding::Q4_1 => "Q4_1",
        Encoding::Q5_0 => "Q5_0",
        Encoding::Q5_1 => "Q5_1",
        // The packing has put the values that its codes stand for in their place.
        Encoding::Q8_0 | Encoding::IQ4_NL => "Q8_0",
        Encoding::Q2_K => "Q2_K",
        Encoding::Q3_K => "Q3_K",
        Encoding::Q4_K => "Q4_K",
        Encoding::Q5_K => "Q5_K",
        Encoding::Q6_K => "Q6_K",
        Encoding::IQ4_XS => "IQ4_XS",
        Encoding::MXFP4 => "Wide",
    })
}

pub fn no_fragments(name: &str, encoding: Encoding) -> Error {
    let encoding = crate::ir::text::encoding_name(encoding);
    Error::Unsupported(format!(
        "'{name}' is {encoding}, for which this target has no kernels; convert the model to F16, BF16 or a quantised type, or \
         compile it for cpu"
    ))
}
