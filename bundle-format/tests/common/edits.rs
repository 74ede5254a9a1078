//! Edits of the sample plan, and what opening the result must say.

use bundle_format::plan::*;
use bundle_format::region::*;
use bundle_format::{ErrorKind, codec, validate};

use super::*;

pub const SMALL: u32 = 60;

/// The sample's launches, in order.
pub const EMBED: usize = 0;
pub const ROPE: usize = 1;
pub const NORM: usize = 2;
pub const QKV: usize = 3;
pub const ATTENTION: usize = 4;
pub const O: usize = 5;
pub const LAST: usize = 6;
pub const OUTPUT: usize = 7;

/// Opening the sample with a changed plan must fail with this kind of error, whose text has all of these.
pub fn refused(kind: ErrorKind, texts: &[&str], change: impl Fn(&mut Plan)) {
    let good = plan(SMALL);
    let mut bad = good.clone();
    change(&mut bad);
    assert!(bad != good, "{texts:?}: the change changes nothing");
    let encoded = codec::encode(&bad).unwrap();
    let manifest = codec::encode(&manifest(SMALL)).unwrap();
    let file = Raw::from_bytes(&manifest, &encoded, &weights_section(&good)).build();
    let error = match open(&file) {
        Ok(()) => panic!("accepted: {texts:?}"),
        Err(error) => error,
    };
    assert_eq!(error.kind(), kind, "{error}");
    assert_eq!(error.section(), Some("plan"), "{error}");
    for text in texts {
        assert!(error.to_string().contains(text), "no {text:?} in: {error}");
    }
}

pub fn bad(texts: &[&str], change: impl Fn(&mut Plan)) {
    refused(ErrorKind::Corrupt, texts, change);
}

pub fn unsupported(texts: &[&str], change: impl Fn(&mut Plan)) {
    refused(ErrorKind::Unsupported, texts, change);
}

pub fn region(plan: &mut Plan, launch: usize) -> &mut Region {
    match &mut plan.launches[launch].op {
        Op::Region { region, .. } => region,
        Op::Attention { epilogue, .. } => epilogue,
        Op::MatMul { segments, .. } => &mut segments[0].epilogue,
        other => panic!("{other:?} has no region"),
    }
}

pub fn epilogue(plan: &mut Plan, launch: usize, segment: usize) -> &mut Region {
    match &mut plan.launches[launch].op {
        Op::MatMul { segments, .. } => &mut segments[segment].epilogue,
        other => panic!("{other:?} has no segments"),
    }
}

/// Checks a plan that a change was made to.
pub fn check(change: impl Fn(&mut Plan)) -> Result<(), validate::Invalid> {
    let mut plan = plan(SMALL);
    change(&mut plan);
    validate::plan(&plan, 500)
}
