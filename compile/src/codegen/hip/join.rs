//! Kernels of a lone token that do the work of two launches: what starts a kernel costs as much as much reading, when all that is read
//! is one token's. No block waits for another's: the last to come does what is left.

use bundle_format::gpu::{Extent, Kernel};
use bundle_format::plan::{Op, Plan, Segment};

use super::matmul::{Experts, Products};
use super::one::{How, Shared};
use super::stability;
use super::target::Chip;
use crate::codegen::gpu::floats;
use crate::codegen::gpu::kernels::{self, ExpertProduct, Parameters, Prologue, Writer};
use crate::codegen::gpu::segments::{by_format, is_f32};
use crate::error::Error;
use crate::lower::gpu::{beside, summed};

/// Wavefronts of a block that one of two products has.
const WAVES: u32 = floats::THREADS / 32;

/// Wavefronts that a vector unit has at most.
const FULL: u32 = 16;

/// A kernel of one token for launch `index` and the one before it; none where they have no such kernel.
pub fn join(chip: &Chip, writer: &mut Writer, index: usize) -> Result<Option<Kernel>, Error> {
    let plan = writer.plan;
    let (first, second) = (&plan.launches[index - 1].op, &plan.launches[index].op);
    let before = index.checked_sub(2).map(|i| &plan.launches[i].op);
    if let Some(kernel) = router(chip, writer, first, second)? {
        return Ok(Some(kernel));
    }
    if beside(first, second) {
        return side_by_side(chip, writer, first, second);
    }
    match (summed(first, second), second) {
        (Some(y), Op::Region { region, .. }) => {
            let product = ExpertProduct::of(plan, first, before)?;
            let run = run(plan, product.segments)?;
            let mut products = experts(chip, writer, &product);
            let (Some(run), false) = (run, products.by_tokens()) else {
                return Ok(None);
            };
            let how = How {
                sum: Some((region, y)),
                ..How::default()
            };
            let mut parameters = Parameters::new();
            let part = products.part(&run, how, &mut parameters, "blockIdx.x")?;
            Ok(part.map(|part| {
                products.kernel_of("experts_one_sum", &part.body, parameters, &[&part])
            }))
        }
        _ => Ok(None),
    }
}

/// A router, by the first blocks; what else its launch multiplies with, by the others; and the route, by the last of the first.
fn router(
    chip: &Chip,
    writer: &mut Writer,
    first: &Op,
    second: &Op,
) -> Result<Option<Kernel>, Error> {
    let Op::MatMul { x, prologue, .. } = first else {
        return Ok(None);
    };
    let Some(router) = writer.router(first, second)? else {
        return Ok(None);
    };
    if router.others.is_empty() {
        return writer.route_behind(first, second);
    }
    let others: Vec<Segment> = router.others.into_iter().cloned().collect();
    let Some(run) = run(writer.plan, &others)? else {
        return Ok(None);
    };
    let mut products = product(chip, writer, *x);
    if prologue.is_some() && !products.is_staged() {
        return Ok(None);
    }
    let shared = shared(chip, products.all_fragments(&run)?);
    let how = How {
        prologue: prologue.as_ref().map(|region| Prologue {
            region,
            stores: false,
        }),
        shared: Some(shared),
        ..How::default()
    };
    let mut parameters = router.parameters;
    let blocks = router.blocks;
    let at = format!("blockIdx.x - {blocks}u");
    let Some(part) = products.part(&run, how, &mut parameters, &at)? else {
        return Ok(None);
    };
    let body = either(blocks, &router.body, &part.body);
    let mut kernel = products.kernel_of("matmul_one_router", &body, parameters, &[&part]);
    kernel.grid[0] = Extent::Fixed(blocks + part.blocks);
    kernel.tickets = 1;
    Ok(Some(kernel))
}

/// Two products that don't wait for one another.
fn side_by_side(
    chip: &Chip,
    writer: &mut Writer,
    first: &Op,
    second: &Op,
) -> Result<Option<Kernel>, Error> {
    let plan = writer.plan;
    let Op::MatMul { x, segments, .. } = first else {
        return Ok(None);
    };
    let of_experts = ExpertProduct::of(plan, second, Some(first))?;
    let (Some(one), Some(other)) = (run(plan, segments)?, run(plan, of_experts.segments)?) else {
        return Ok(None);
    };
    let fragments = product(chip, writer, *x).all_fragments(&one)?
        + experts(chip, writer, &of_experts).all_fragments(&other)?;
    let how = || How {
        shared: Some(shared(chip, fragments)),
        ..How::default()
    };
    let mut parameters = Parameters::new();
    let dense = product(chip, writer, *x).part(&one, how(), &mut parameters, "blockIdx.x")?;
    let Some(dense) = dense else {
        return Ok(None);
    };
    let at = format!("blockIdx.x - {}u", dense.blocks);
    let mut products = experts(chip, writer, &of_experts);
    let Some(own) = products.part(&other, how(), &mut parameters, &at)? else {
        return Ok(None);
    };
    let body = either(dense.blocks, &dense.body, &own.body);
    Ok(Some(products.kernel_of(
        "experts_one_beside",
        &body,
        parameters,
        &[&dense, &own],
    )))
}

/// What the first blocks do, and what the others do.
fn either(blocks: u32, first: &str, others: &str) -> String {
    format!("if (blockIdx.x < {blocks}) {{\n    {first}\n    }} else {{\n    {others}\n    }}")
}

/// Blocks among which so many fragments are divided, so that all that the chip runs at a time have about as many.
fn shared(chip: &Chip, fragments: u32) -> Shared {
    Shared {
        waves: WAVES,
        fragments: f64::from(fragments) / f64::from(2 * chip.units * FULL),
    }
}

/// Segments that one kernel of fragments multiplies with; none where they have several formats.
fn run<'s>(plan: &Plan, segments: &'s [Segment]) -> Result<Option<Vec<&'s Segment>>, Error> {
    let mut runs = by_format(plan, segments)?;
    Ok(match (runs.pop(), runs.is_empty()) {
        (Some(run), true) if !is_f32(plan, &run) => Some(run),
        _ => None,
    })
}

fn product<'a, 'w>(chip: &'a Chip, writer: &'a mut Writer<'w>, x: u32) -> Products<'a, 'w> {
    Products {
        chip,
        writer,
        x,
        experts: None,
    }
}

fn experts<'a, 'w>(
    chip: &'a Chip,
    writer: &'a mut Writer<'w>,
    product: &'a ExpertProduct<'a>,
) -> Products<'a, 'w> {
    // One kernel for all profiles that have it.
    let mut joining = kernels::Chip::joining(chip).iter();
    let checked = joining.any(|s| stability::choices(s, 1).check_indices);
    Products {
        chip,
        writer,
        x: product.x,
        experts: Some(Experts {
            product,
            last: 1,
            checked,
        }),
    }
}
