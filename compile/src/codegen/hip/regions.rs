//! Regions, fused or apart: launches of their own, and what the rotation and the KV write behind a product become.

use bundle_format::gpu::{Arg, Extent, Kernel};
use bundle_format::plan::{Dim, KvDType, Segment, Variant};
use bundle_format::region::Region;

use super::stability::{self, LARGE};
use super::stages::{self, KvStore};
use super::target::Chip;
use crate::codegen::gpu::kernels::{Parameters, Writer, reason, variant};
use crate::error::Error;

/// Most threads of a block that writes keys or values.
const MAX_THREADS: u32 = 256;

/// Variants of a region of its own.
pub fn variants(
    chip: &Chip,
    writer: &mut Writer,
    extent: Dim,
    region: &Region,
) -> Result<Vec<Variant>, Error> {
    let apart = apart(writer, extent, region)?;
    let limit = writer.limit(extent);
    let mut variants = Vec::new();
    for (first, last) in [(1, limit.min(LARGE - 1)), (LARGE, limit)] {
        if first > last {
            continue;
        }
        let is_norm = region.has_row_sum();
        let ways = stability::ways(chip.profiles(), first, |choices| {
            apart.is_some()
                && if is_norm {
                    choices.norm_apart
                } else {
                    choices.rope_kv_apart
                }
        });
        for (profiles, take_apart) in ways {
            let mut made = match (&apart, take_apart) {
                (Some(kernels), true) => {
                    let mut kernels = kernels.clone();
                    stages::resolve(writer.plan, &mut kernels, last);
                    variant(
                        first,
                        last,
                        kernels,
                        1,
                        "kernels of their own, a stream each",
                    )
                }
                _ => {
                    let kernel = writer.region_kernel(extent, region, false)?;
                    variant(first, last, vec![kernel], 1, reason(region))
                }
            };
            made.profiles = profiles;
            variants.push(made);
        }
    }
    Ok(joined(variants))
}

/// Variants of neighbouring ranges that are one: the same kernels, in the same profiles.
fn joined(variants: Vec<Variant>) -> Vec<Variant> {
    let mut all: Vec<Variant> = Vec::new();
    for next in variants {
        let same = |v: &Variant| {
            (v.max_rows + 1, v.profiles, &v.kernels)
                == (next.min_rows, next.profiles, &next.kernels)
        };
        match all.iter_mut().find(|v| same(v)) {
            Some(before) => before.max_rows = next.max_rows,
            None => all.push(next),
        }
    }
    all
}

/// What runs before a product for its prologue: a kernel, or where a rule takes it apart, two.
pub fn before(
    writer: &mut Writer,
    extent: Dim,
    region: &Region,
    take_apart: bool,
) -> Result<Vec<Kernel>, Error> {
    let kernels = match take_apart {
        true => apart(writer, extent, region)?,
        false => None,
    };
    match kernels {
        Some(kernels) => Ok(kernels),
        None => Ok(vec![writer.region_kernel(extent, region, false)?]),
    }
}

/// The kernels of a region that a rule may take apart; none for others.
fn apart(writer: &mut Writer, extent: Dim, region: &Region) -> Result<Option<Vec<Kernel>>, Error> {
    if let Some((first, second)) = stages::norm(region, writer.plan)? {
        let kernels = vec![
            writer.region_kernel(extent, &first, false)?,
            writer.region_kernel(extent, &second, false)?,
        ];
        return Ok(Some(kernels));
    }
    let Some(store) = stages::kv_store(region, 0) else {
        return Ok(None);
    };
    let work = stages::workspace(writer.plan);
    let mut kernels = Vec::new();
    if let Some(rest) = stages::rest(region, work, 0) {
        kernels.push(writer.region_kernel(extent, &rest, false)?);
    }
    kernels.push(scatter(writer, &[store])?);
    Ok(Some(kernels))
}

/// A product's segments, and the kernels that run behind it.
pub type Apart = (Vec<Segment>, Vec<Kernel>);

/// A product's segments, and what runs behind it: those that rotate or write keys and values leave sums in the workspace. None
/// where there are none.
pub fn behind(
    writer: &mut Writer,
    extent: Dim,
    segments: &[Segment],
) -> Result<Option<Apart>, Error> {
    let work = stages::workspace(writer.plan);
    let (mut sums, mut kernels) = (segments.to_vec(), Vec::new());
    let mut stores: Vec<KvStore> = Vec::new();
    let mut base = 0;
    for segment in &mut sums {
        let epilogue = segment.epilogue.clone();
        let store = stages::kv_store(&epilogue, base);
        if store.is_some() || stages::rotates(&epilogue) {
            segment.epilogue = stages::sums(&epilogue, &writer.plan.kv, work, base);
            if let Some(rest) = stages::rest(&epilogue, work, base) {
                kernels.push(writer.region_kernel(extent, &rest, false)?);
            }
            stores.extend(store);
        }
        base += epilogue.cols;
    }
    // Keys and values of a layer go together.
    while let Some(&first) = stores.first() {
        let of_layer =
            |s: &KvStore| (s.group, s.layer, s.slots) == (first.group, first.layer, first.slots);
        let (own, others) = stores.into_iter().partition(of_layer);
        let own: Vec<KvStore> = own;
        for pair in own.chunks(2) {
            kernels.push(scatter(writer, pair)?);
        }
        stores = others;
    }
    Ok(match kernels.is_empty() {
        true => None,
        false => Some((sums, kernels)),
    })
}

/// The kernel that writes one or two parts of a layer's pool from the workspace.
fn scatter(writer: &mut Writer, stores: &[KvStore]) -> Result<Kernel, Error> {
    let work = stages::workspace(writer.plan);
    let (Some(first), Some(last)) = (stores.first(), stores.last()) else {
        return Err(Error::Bug("a KV write of nothing".into()));
    };
    let kv = &writer.plan.kv[first.group as usize];
    let (heads, dim, q8) = (kv.kv_heads, kv.head_dim, kv.dtype == KvDType::Q8Rows);
    let stride = writer.plan.buffers[work as usize].row_bytes() / 4;
    let pool = |store: &KvStore| Arg::Kv {
        group: store.group,
        layer: store.layer,
        part: store.part,
    };
    let parameters: Parameters = vec![
        ("const float*", Arg::Buffer(work)),
        ("const u32*", Arg::Buffer(first.slots)),
        ("char*", pool(first)),
        ("char*", pool(last)),
        ("u64", Arg::KvBlocks),
    ];
    let threads = (heads * dim / 8).next_multiple_of(32).min(MAX_THREADS);
    let body = format!(
        "attention::kv_scatter<attention::Stored<{heads}, {dim}, {q8}>, {stride}, {}, {}, {threads}>(counts, p0, p1, p2, p3, \
         (u32)p4);",
        first.base, last.base
    );
    let mut kernel = writer.kernel("kv_scatter", parameters, &body, "", threads, 1);
    kernel.grid = [
        Extent::Rows(1),
        Extent::Fixed(stores.len() as u32),
        Extent::Fixed(1),
    ];
    Ok(kernel)
}
