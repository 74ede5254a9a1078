//! Checks of a decoded manifest and plan, once, before anything uses them: an executor may then index, add and multiply
//! what the plan says without a check of its own.
//!
//! In the order of [`bundle`]: the manifest's spelling, the step's limits, KV groups, buffers, weights, and then each launch
//! (`launch`), its regions (`region`), what is where in the arena when (`arena`), and that launches wait for those whose
//! work they need or overwrite (`order`).

mod arena;
mod gpu;
mod launch;
mod order;
mod region;

use std::fmt::Display;

use crate::model::Manifest;
use crate::plan::{
    ALIGN, Buffer, DType, Dim, Encoding, Input, KvGroup, Limits, Output, Plan, Role, Weight,
    WeightLayout,
};
use crate::stability::Profile;

/// Upper bounds of what the format can express sensibly. They keep every product of plan sizes far inside a u64.
const MAX_STEP_TOKENS: u32 = 1 << 20;
const MAX_CONTEXT: u32 = 1 << 28;
const MAX_KV_DIM: u32 = 1 << 12;
const MAX_COLS: u32 = 1 << 28;
const MAX_EXPERTS: u32 = 1 << 12;
const MAX_EXPERTS_USED: u32 = 1 << 8;
const MAX_ARENA: u64 = 1 << 42;
const MAX_NAME: usize = 4096;
const MAX_RULES: usize = 64;
const MAX_LAUNCHES: usize = 1 << 14;

/// What is wrong with a manifest or a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Where: `launch 3 (blk.0.qkv): variant 1: min_rows`.
    pub at: String,
    pub expected: String,
    pub found: String,
    /// Whether it is well-formed but more than this version supports.
    pub unsupported: bool,
}

impl Invalid {
    fn new(at: impl Into<String>, expected: impl Display, found: impl Display) -> Invalid {
        Invalid {
            at: at.into(),
            expected: expected.to_string(),
            found: found.to_string(),
            unsupported: false,
        }
    }

    fn unsupported(at: impl Into<String>, expected: impl Display, found: impl Display) -> Invalid {
        Invalid {
            unsupported: true,
            ..Invalid::new(at, expected, found)
        }
    }

    /// The same, with the place that `at` lies in put before it.
    fn within(mut self, place: impl Display) -> Invalid {
        self.at = format!("{place}: {}", self.at);
        self
    }
}

/// Returns an [`Invalid`] unless the condition holds. The texts are made only then.
macro_rules! ensure {
    ($holds:expr, $at:expr, $expected:expr, $found:expr) => {
        if !$holds {
            return Err($crate::validate::Invalid::new($at, $expected, $found));
        }
    };
}
pub(crate) use ensure;

/// Types as error messages list them: `Q8 or Q11`.
fn one_of(types: &[DType]) -> String {
    let names: Vec<String> = types.iter().map(|dtype| format!("{dtype:?}")).collect();
    names.join(" or ")
}

/// A name as error messages show it: short, without control characters.
fn shown(name: &str) -> String {
    let short: String = name.chars().take(60).collect();
    short.escape_debug().to_string()
}

/// Checks everything that one section can say about another: manifest, plan, and the code's size in bytes.
pub fn bundle(manifest: &Manifest, plan: &Plan, code_len: u64) -> Result<(), Invalid> {
    self::manifest(manifest)?;
    self::plan(plan, code_len)?;
    gpu::fits(manifest.target, plan)?;
    ensure!(
        plan.stability.is_empty() || manifest.target.has_profiles(),
        "stability",
        format!("no profiles, for {}", manifest.target),
        plan.stability.len()
    );

    let vocab = manifest.model.vocab;
    for (i, buffer) in plan.buffers.iter().enumerate() {
        let (name, what, cols) = match buffer.place.role {
            Role::Output(Output::Logits) => ("logits", "the vocabulary's size", vocab),
            Role::Output(Output::Hidden) => {
                let embedding = manifest.model.embedding;
                ("hidden", "the embedding's size", embedding)
            }
            Role::Scratch | Role::Input(_) => continue,
        };
        ensure!(
            buffer.cols == cols,
            format!("buffer {i} ({name}): cols"),
            format!("{what}, {cols}"),
            buffer.cols
        );
    }
    for (i, launch) in plan.launches.iter().enumerate() {
        if let crate::plan::Op::Embed { table, .. } = launch.op {
            // `plan` has checked the index.
            let rows = plan.weights[table as usize].rows;
            ensure!(
                rows >= vocab,
                format!("launch {i}: rows of the embedding table"),
                format!("at least the vocabulary's size, {vocab}"),
                rows
            );
        }
    }
    Ok(())
}

/// Checks the manifest's strings. Whether a runner has the features and the kernel ABI that it names is the runner's to
/// say.
pub fn manifest(manifest: &Manifest) -> Result<(), Invalid> {
    for (i, feature) in manifest.features.iter().enumerate() {
        let spelled = !feature.is_empty()
            && feature.len() <= 64
            && feature
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'));
        ensure!(
            spelled,
            format!("manifest: features[{i}]"),
            "1 to 64 of a-z 0-9 . - _",
            format!("{:?}", shown(feature))
        );
        ensure!(
            !manifest.features[..i].contains(feature),
            format!("manifest: features[{i}]"),
            "each feature once",
            shown(feature)
        );
        ensure!(i < 256, "manifest: features", "at most 256", i + 1);
    }
    for (i, option) in manifest.options.iter().enumerate() {
        ensure!(
            option.contains('='),
            format!("manifest: options[{i}]"),
            "name=value",
            format!("{:?}", shown(option))
        );
        ensure!(
            i == 0 || manifest.options[i - 1] <= *option,
            format!("manifest: options[{i}]"),
            "sorted options",
            shown(option)
        );
    }
    ensure!(
        manifest.model.vocab >= 1,
        "manifest: model.vocab",
        "at least 1",
        0
    );
    Ok(())
}

/// Checks a plan whose code section has `code_len` bytes.
pub fn plan(plan: &Plan, code_len: u64) -> Result<(), Invalid> {
    limits(&plan.limits)?;
    if plan.world_size != 1 {
        return Err(Invalid::unsupported("world_size", 1, plan.world_size));
    }
    for (i, group) in plan.kv.iter().enumerate() {
        kv_group(group).map_err(|e| e.within(format_args!("KV group {i}")))?;
    }
    if plan.arena_bytes > MAX_ARENA {
        let expected = format!("at most {MAX_ARENA}");
        let found = plan.arena_bytes;
        return Err(Invalid::unsupported("arena_bytes", expected, found));
    }
    for (i, b) in plan.buffers.iter().enumerate() {
        buffer(plan, b).map_err(|e| e.within(format_args!("buffer {i} ({})", shown(&b.name))))?;
    }
    roles(plan)?;
    weights_len(plan)?;
    stability(&plan.stability).map_err(|e| e.within("stability"))?;

    if plan.launches.len() > MAX_LAUNCHES {
        let expected = format!("at most {MAX_LAUNCHES}");
        let found = plan.launches.len();
        return Err(Invalid::unsupported("launches", expected, found));
    }
    let mut arena = arena::Arena::new(plan);
    let mut order = order::Order::new(plan);
    let mut joined: Option<arena::Effects> = None;
    for (i, l) in plan.launches.iter().enumerate() {
        launch::check(plan, i, l, code_len)
            .and_then(|effects| {
                arena.launch(&effects)?;
                // Its kernels may be what reads for the one before.
                if let Some(before) = joined.take() {
                    arena.keeps(&before)?;
                }
                joined = l.joins().then(|| effects.clone());
                order.launch(&effects)
            })
            .map_err(|e| e.within(format_args!("launch {i} ({})", shown(&l.name))))?;
    }
    gpu::sampling(plan)?;
    arena.finish()
}

fn limits(limits: &Limits) -> Result<(), Invalid> {
    let fields = [
        ("limits.max_tokens", limits.max_tokens, MAX_STEP_TOKENS),
        ("limits.max_seqs", limits.max_seqs, MAX_STEP_TOKENS),
        ("limits.max_rows", limits.max_rows, MAX_STEP_TOKENS),
        ("limits.context", limits.context, MAX_CONTEXT),
    ];
    fields
        .into_iter()
        .try_for_each(|(name, found, max)| within(name, found, max))
}

/// A plan's profiles are its own and all stricter ones.
fn stability(profiles: &[Profile]) -> Result<(), Invalid> {
    let mut expected = profiles.first().map(|p| p.stability);
    for (i, profile) in profiles.iter().enumerate() {
        ensure!(
            expected == Some(profile.stability),
            format!("profile {i}"),
            expected.map_or("none behind the strictest".to_string(), |e| e.to_string()),
            profile.stability
        );
        expected = profile.stability.stricter();
        ensure!(
            profile.rules.len() <= MAX_RULES,
            format!("profile {i}: rules"),
            format!("at most {MAX_RULES}"),
            profile.rules.len()
        );
        for (j, rule) in profile.rules.iter().enumerate() {
            for text in [&rule.when, &rule.choice, &rule.reason] {
                name(text).map_err(|e| e.within(format_args!("profile {i}: rule {j}")))?;
            }
        }
    }
    ensure!(
        expected.is_none(),
        "profiles",
        "up to the strictest",
        profiles.len()
    );
    Ok(())
}

/// Checks that a size is neither zero nor absurd.
fn within(at: &str, found: u32, max: u32) -> Result<(), Invalid> {
    ensure!((1..=max).contains(&found), at, format!("1 to {max}"), found);
    Ok(())
}

fn name(name: &str) -> Result<(), Invalid> {
    ensure!(
        name.len() <= MAX_NAME,
        "name",
        format!("at most {MAX_NAME} bytes"),
        name.len()
    );
    ensure!(
        !name.contains(char::is_control),
        "name",
        "no control characters",
        shown(name)
    );
    Ok(())
}

fn kv_group(group: &KvGroup) -> Result<(), Invalid> {
    within("layers", group.layers, MAX_KV_DIM)?;
    within("kv_heads", group.kv_heads, MAX_KV_DIM)?;
    within("head_dim", group.head_dim, MAX_KV_DIM)?;
    let block = group.dtype.block();
    ensure!(
        group.head_dim.is_multiple_of(block),
        format!("head_dim in {:?}", group.dtype),
        format!("a multiple of {block}"),
        group.head_dim
    );
    group
        .window
        .map_or(Ok(()), |w| within("window", w, MAX_CONTEXT))
}

/// Rows of a buffer at the plan's limits.
fn max_extent(plan: &Plan, extent: Dim) -> u32 {
    plan.limits.rows(extent)
}

/// Checks a symbolic extent. With it, [`max_extent`] is below 2^28.
fn extent(extent: Dim) -> Result<(), Invalid> {
    match extent {
        Dim::Pairs(each) => within("experts of a token", each, MAX_EXPERTS_USED),
        Dim::Tokens | Dim::Rows | Dim::One => Ok(()),
    }
}

fn buffer(plan: &Plan, buffer: &Buffer) -> Result<(), Invalid> {
    name(&buffer.name)?;
    within("cols", buffer.cols, MAX_COLS)?;
    extent(buffer.extent)?;
    ensure!(
        (buffer.cols as usize).is_multiple_of(buffer.dtype.block()),
        "cols of a quantised buffer",
        format!("a multiple of {}", buffer.dtype.block()),
        buffer.cols
    );
    let offset = buffer.place.offset;
    ensure!(
        offset.is_multiple_of(ALIGN as u64),
        "offset",
        format!("a multiple of {ALIGN}"),
        offset
    );
    // Below 2^28 rows of 2^31 bytes.
    let bytes = max_extent(plan, buffer.extent) as u64 * buffer.row_bytes();
    ensure!(
        offset
            .checked_add(bytes)
            .is_some_and(|end| end <= plan.arena_bytes),
        "range in the arena",
        format!("inside its {} bytes", plan.arena_bytes),
        format!("{bytes} bytes at {offset}")
    );
    let (dtype, extent, column) = match buffer.place.role {
        Role::Scratch => return Ok(()),
        Role::Input(Input::Rows) => (DType::U32, Dim::Rows, true),
        Role::Input(Input::Tokens | Input::Positions | Input::Sequences) => {
            (DType::U32, Dim::Tokens, true)
        }
        Role::Input(Input::Slots(group)) => {
            let groups = plan.kv.len();
            ensure!(
                (group as usize) < groups,
                "KV group of the slots",
                format!("below {groups}"),
                group
            );
            (DType::U32, Dim::Tokens, true)
        }
        Role::Output(Output::Logits | Output::Hidden) => (DType::F32, Dim::Rows, false),
    };
    ensure!(
        buffer.dtype == dtype && buffer.extent == extent && (!column || buffer.cols == 1),
        format!("type of {:?}", buffer.place.role),
        format!("{dtype:?} [{extent:?}, {}]", if column { "1" } else { "…" }),
        format!("{:?} [{:?}, {}]", buffer.dtype, buffer.extent, buffer.cols)
    );
    Ok(())
}

/// Each input and output at most once; a step needs token ids and yields logits.
fn roles(plan: &Plan) -> Result<(), Invalid> {
    let mut seen = std::collections::HashMap::new();
    for (i, buffer) in plan.buffers.iter().enumerate() {
        let role = buffer.place.role;
        if role == Role::Scratch {
            continue;
        }
        if let Some(other) = seen.insert(role, i) {
            return Err(Invalid::new(
                format!("role of buffer {i}"),
                "each input and output once",
                format!("{role:?} again, as buffer {other}"),
            ));
        }
    }
    for role in [Role::Input(Input::Tokens), Role::Output(Output::Logits)] {
        ensure!(
            seen.contains_key(&role),
            "buffers",
            format!("one of the role {role:?}"),
            "none"
        );
    }
    Ok(())
}

/// The block of an encoding: its elements, its bytes in GGUF, and its bytes in a packed row (`WeightLayout::Interleave8`),
/// where some scales are widened.
const fn block(encoding: Encoding) -> (u32, u64, u64) {
    match encoding {
        Encoding::F32 => (1, 4, 4),
        Encoding::F16 | Encoding::BF16 => (1, 2, 2),
        Encoding::Q4_0 | Encoding::IQ4_NL => (32, 18, 18),
        Encoding::Q4_1 => (32, 20, 20),
        Encoding::Q5_0 => (32, 22, 22),
        Encoding::Q5_1 => (32, 24, 24),
        Encoding::Q8_0 => (32, 34, 34),
        Encoding::MXFP4 => (32, 17, 17),
        Encoding::Q2_K => (256, 84, 84),
        Encoding::Q3_K => (256, 110, 114),
        Encoding::Q4_K => (256, 144, 148),
        Encoding::Q5_K => (256, 176, 180),
        Encoding::Q6_K => (256, 210, 210),
        Encoding::IQ4_XS => (256, 136, 138),
    }
}

/// Types of activations that weights of an encoding are multiplied with, the cheapest first; with Q14 in [`WeightLayout::Pairs8`], with
/// the others as they are or in [`WeightLayout::Interleave8`].
pub const fn activation_types(encoding: Encoding) -> &'static [DType] {
    match encoding {
        Encoding::F32 => &[DType::F32],
        Encoding::F16 | Encoding::BF16 => &[DType::F32, DType::Q14],
        Encoding::Q4_0
        | Encoding::Q4_1
        | Encoding::Q8_0
        | Encoding::Q5_0
        | Encoding::Q5_1
        | Encoding::IQ4_NL
        | Encoding::MXFP4 => &[DType::Q8, DType::Q11],
        Encoding::Q2_K
        | Encoding::Q3_K
        | Encoding::Q4_K
        | Encoding::Q5_K
        | Encoding::Q6_K
        | Encoding::IQ4_XS => &[DType::Q8K, DType::Q11],
    }
}

/// Bytes of a fragment of 16 rows by 64 columns (`WeightLayout::Fragment16`): its codes and its scales; none where an
/// encoding has no fragments.
pub const fn fragment(encoding: Encoding) -> Option<u64> {
    let (codes, scales) = match encoding {
        Encoding::F32 => return None,
        Encoding::F16 | Encoding::BF16 => (2048, 0),
        Encoding::Q4_0 => (512, 64),
        Encoding::Q4_1 => (512, 128),
        Encoding::Q5_0 => (640, 64),
        Encoding::Q5_1 => (640, 128),
        Encoding::Q8_0 | Encoding::IQ4_NL => (1024, 64),
        Encoding::Q2_K | Encoding::Q4_K => (512, 128),
        Encoding::Q3_K => (512, 96),
        Encoding::Q5_K => (640, 128),
        Encoding::Q6_K => (768, 96),
        Encoding::IQ4_XS => (1024, 96),
        Encoding::MXFP4 => (1024, 512),
    };
    Some(codes + scales)
}

/// Whether weights of an encoding may lie so, if their columns fit.
fn has_layout(encoding: Encoding, layout: WeightLayout) -> bool {
    match layout {
        WeightLayout::RowMajor | WeightLayout::Interleave8 => true,
        WeightLayout::Fragment16 => fragment(encoding).is_some(),
        WeightLayout::Pairs8 => activation_types(encoding).contains(&DType::Q14),
    }
}

/// Bytes of a weight of this encoding, layout and shape; none where the encoding has no such layout, or `cols` is no multiple of its
/// block.
pub fn packed_len(encoding: Encoding, layout: WeightLayout, rows: u32, cols: u32) -> Option<u64> {
    let (elements, bytes, packed_bytes) = block(encoding);
    if !has_layout(encoding, layout) || !cols.is_multiple_of(elements) {
        return None;
    }
    let blocks = (cols / elements) as u64;
    match layout {
        WeightLayout::RowMajor => (blocks * bytes).checked_mul(rows as u64),
        WeightLayout::Interleave8 => {
            (blocks * packed_bytes).checked_mul((rows as u64).next_multiple_of(8))
        }
        WeightLayout::Pairs8 => {
            if !cols.is_multiple_of(32) {
                return None;
            }
            // An exponent a row besides 32 elements, in whole lines.
            let blocks = u64::from(cols / 32);
            let group = blocks * 8 * 32 * bytes + (blocks * 8).next_multiple_of(ALIGN as u64);
            group.checked_mul(u64::from(rows).div_ceil(8))
        }
        WeightLayout::Fragment16 => {
            let bytes = fragment(encoding)?;
            if !cols.is_multiple_of(64) {
                return None;
            }
            let tiles = (rows as u64).div_ceil(16);
            ((cols / 64) as u64 * bytes).checked_mul(tiles)
        }
    }
}

/// Checks the weights, and gives the length of the section that holds them: the end of the last, rounded up to
/// [`ALIGN`].
pub fn weights_len(plan: &Plan) -> Result<u64, Invalid> {
    let mut end = 0;
    for (i, w) in plan.weights.iter().enumerate() {
        end = weight(w, end)
            .map_err(|e| e.within(format_args!("weight {i} ({})", shown(&w.name))))?;
    }
    Ok(end)
}

/// Checks a weight that may start at `start`, and gives where the next may.
fn weight(weight: &Weight, start: u64) -> Result<u64, Invalid> {
    name(&weight.name)?;
    within("rows", weight.rows, MAX_COLS)?;
    within("cols", weight.cols, MAX_COLS)?;
    ensure!(
        has_layout(weight.encoding, weight.layout),
        format!("layout of a weight in {:?}", weight.encoding),
        "one that it has",
        format!("{:?}", weight.layout)
    );
    let len = packed_len(weight.encoding, weight.layout, weight.rows, weight.cols);
    ensure!(
        len.is_some(),
        format!("cols of a weight in {:?}", weight.encoding),
        "a multiple of 32",
        weight.cols
    );
    ensure!(
        len == Some(weight.len),
        "len",
        format!(
            "{} bytes for {} rows of {} columns in {:?}, {:?}",
            len.unwrap_or_default(),
            weight.rows,
            weight.cols,
            weight.encoding,
            weight.layout
        ),
        weight.len
    );
    ensure!(
        weight.offset.is_multiple_of(ALIGN as u64),
        "offset",
        format!("a multiple of {ALIGN}"),
        weight.offset
    );
    ensure!(
        weight.offset >= start,
        "offset",
        format!("at least {start}, behind the weight before it"),
        weight.offset
    );
    let max = crate::layout::SectionKind::Weights.max_raw_len();
    let end = weight
        .offset
        .checked_add(weight.len)
        .and_then(|end| end.checked_next_multiple_of(ALIGN as u64))
        .filter(|&end| end <= max);
    let Some(end) = end else {
        return Err(Invalid::unsupported(
            "end in the weights section",
            format!("at most {max}"),
            format!("{} bytes at {}", weight.len, weight.offset),
        ));
    };
    ensure!(
        weight.pairs == 0
            || weight.layout == WeightLayout::Fragment16
                && weight.pairs.is_multiple_of(16)
                && weight.rows.is_multiple_of(weight.pairs),
        "pairs",
        "0, or in Fragment16 a multiple of 16 that divides the rows",
        weight.pairs
    );
    slices(weight)?;
    Ok(end)
}

/// The source tensors of a weight cover its rows.
fn slices(weight: &Weight) -> Result<(), Invalid> {
    if weight.slices.is_empty() {
        return Ok(());
    }
    let mut rows = 0;
    for (i, slice) in weight.slices.iter().enumerate() {
        name(&slice.tensor).map_err(|e| e.within(format_args!("slice {i}")))?;
        ensure!(
            weight.interleave == 0
                || slice.rows == weight.slices[0].rows
                    && slice.rows.is_multiple_of(weight.interleave),
            format!("rows of slice {i}"),
            format!("a multiple of {}, as many as of slice 0", weight.interleave),
            slice.rows
        );
        // Each fits 32 bits, and there are fewer than 2^32.
        rows += slice.rows as u64;
    }
    ensure!(
        rows == weight.rows as u64,
        "rows of all slices",
        weight.rows,
        rows
    );
    Ok(())
}
