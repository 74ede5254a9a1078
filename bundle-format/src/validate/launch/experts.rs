//! Checks of the launches of a mixture of experts: that a list of pairs and the starts of its parts are made together, and
//! are of the sizes that those who read them take for granted.

use super::super::{Invalid, MAX_EXPERTS, MAX_EXPERTS_USED, ensure, within};
use super::{Effects, Shape, buffer, finite, product};
use crate::plan::{Buffer, DType, Dim, Op, Plan, Role, Segment};

/// Checks a route. Outputs: weights, places, tokens, starts.
pub fn route(
    plan: &Plan,
    logits: u32,
    scale: f32,
    outputs: [u32; 4],
) -> Result<(Shape, Effects), Invalid> {
    let experts = buffer(plan, "logits", logits)?.cols;
    within("experts", experts, MAX_EXPERTS)?;
    let used = buffer(plan, "weights", outputs[0])?.cols;
    within("experts of a token", used, MAX_EXPERTS_USED.min(experts))?;
    let [weights, places, tokens, starts] = outputs;
    expect(plan, "logits", logits, DType::F32, Dim::Tokens, experts)?;
    expect(plan, "weights", weights, DType::F32, Dim::Tokens, used)?;
    expect(plan, "places", places, DType::U32, Dim::Tokens, used)?;
    expect(plan, "tokens", tokens, DType::U32, Dim::Pairs(used), 1)?;
    expect(plan, "starts", starts, DType::U32, Dim::One, experts + 1)?;
    ensure!(
        logits != weights,
        "weights",
        "a buffer other than the logits",
        weights
    );
    finite("scale", scale)?;
    // One list for each buffer of starts and the other way round, so that who reads both reads one route's.
    let others = plan.launches.iter().filter_map(|l| list(&l.op));
    for other in others {
        ensure!(
            (other.0 == tokens) == (other.1 == starts),
            "tokens and starts",
            format!(
                "buffers {} and {} together, as another route has them",
                other.0, other.1
            ),
            format!("{tokens} and {starts}")
        );
    }
    let effects = Effects {
        reads: vec![logits],
        writes: outputs.to_vec(),
        ..Effects::default()
    };
    Ok((Shape::plain(), effects))
}

/// The tokens and starts of a route.
fn list(op: &Op) -> Option<(u32, u32)> {
    match op {
        Op::Route { tokens, starts, .. } => Some((*tokens, *starts)),
        _ => None,
    }
}

/// Checks a matmul of the pairs of a list.
pub fn matmul(
    plan: &Plan,
    x: u32,
    tokens: u32,
    starts: u32,
    segments: &[Segment],
) -> Result<(Shape, Effects), Invalid> {
    ensure!(
        plan.launches
            .iter()
            .any(|l| list(&l.op) == Some((tokens, starts))),
        "tokens and starts",
        "the buffers of one route",
        format!("{tokens} and {starts}")
    );
    let pairs = buffer(plan, "tokens", tokens)?.extent;
    // The route may stand behind this launch and be unchecked so far.
    let columns = buffer(plan, "starts", starts)?.cols;
    within("columns of starts", columns, MAX_EXPERTS + 1)?;
    let input = buffer(plan, "x", x)?;
    ensure!(
        input.extent == pairs || input.extent == Dim::Tokens,
        "rows of x",
        format!("Tokens or {pairs:?}"),
        format!("{:?}", input.extent)
    );
    let experts = columns.saturating_sub(1).max(1);
    product(
        plan,
        (x, input),
        segments,
        pairs,
        experts,
        &[x, tokens, starts],
    )
}

fn expect(
    plan: &Plan,
    at: &str,
    index: u32,
    dtype: DType,
    extent: Dim,
    cols: u32,
) -> Result<(), Invalid> {
    let b: &Buffer = buffer(plan, at, index)?;
    // Lists are trusted where they are used: they are not the host's.
    ensure!(
        b.dtype == dtype && b.extent == extent && b.cols == cols && b.place.role == Role::Scratch,
        format!("type of {at}"),
        format!("{dtype:?} [{extent:?}, {cols}], Scratch"),
        format!(
            "{:?} [{:?}, {}], {:?}",
            b.dtype, b.extent, b.cols, b.place.role
        )
    );
    Ok(())
}
