//! The story as one HTML page: the same facts as JSON inside a page that needs nothing else.
//!
//! What is said of a layer is said once for all layers of which the same holds ([`sections`]): their names, `blk.7.` and
//! `blk.6.`, become `blk.{i}.` and `blk.{i-1}.`, and what else differs (places in memory) is listed a layer each.

use std::collections::BTreeMap;
use std::path::Path;

use bundle_format::plan::{KV_BLOCK, Launch, Op, Plan, Role};
use bundle_format::stability::Profile;
use serde_json::{Value, json};

use super::speed::{Model, Predicted};
use super::{Cost, cost, launched, op_name, part_names, rows, speed_of};
use crate::driver::{self, Compiled, Options};
use crate::error::Error;
use crate::gguf::Gguf;
use crate::ir::{Graph, Node, Op as NodeOp, Transform, text};
use crate::lower::memory;
use crate::output::Output;
use crate::passes::Stage;

const TEMPLATE: &str = include_str!("page.html");

/// Where the template takes the data.
const MARK: &str = "@DATA@";

/// The page of a model and a target. `model` is its title.
///
/// # Errors
/// Those of compiling.
pub fn page(gguf: &Gguf<'_>, options: &Options, model: &str) -> Result<String, Error> {
    let (mut stages, mut imported) = (Vec::new(), None);
    let compiled = driver::compile_graph(
        gguf,
        options,
        |stage| stages.push(stage),
        |graph| imported = Some(graph.clone()),
    )?;
    let imported =
        imported.ok_or_else(|| Error::Bug("the imported graph was not shown".to_string()))?;
    render(&data(model, options, &imported, &stages, &compiled))
}

/// Writes the page: whole, or not at all.
///
/// # Errors
/// [`Error::User`]: the file can't be made there.
pub fn write(page: &str, output: &Path) -> Result<(), Error> {
    use std::io::Write as _;
    let named = |e: Error| e.context("--html");
    Output::check(output, []).map_err(named)?;
    let output = Output::create(output).map_err(named)?;
    let written = output.file().write_all(page.as_bytes());
    written.map_err(|e| named(output.failed(e)))?;
    output.finish().map_err(named)
}

/// The data in its page. `<` is escaped, so that no name ends the script.
fn render(data: &Value) -> Result<String, Error> {
    let (before, after) = TEMPLATE
        .split_once(MARK)
        .ok_or_else(|| Error::Bug(format!("the page has no {MARK}")))?;
    let json = data.to_string().replace('<', "\\u003c");
    Ok([before, &json, after].concat())
}

fn data(
    model: &str,
    options: &Options,
    imported: &Graph,
    stages: &[Stage],
    compiled: &Compiled,
) -> Value {
    let plan = &compiled.plan;
    let steps = steps(plan);
    let costs: Vec<Value> = steps
        .iter()
        .map(|step| {
            let each = plan
                .launches
                .iter()
                .map(|l| cost(plan, &l.op, step.tokens, step.depth));
            let total = each.fold(Cost::default(), add);
            json!({"name": step.name, "about": step.about(), "total": cost_json(&total)})
        })
        .collect();
    json!({
        "model": model,
        "arch": imported.arch,
        "compiler": format!("fastc {}", env!("CARGO_PKG_VERSION")),
        "target": options.target.name(),
        "limits": {
            "tokens": plan.limits.max_tokens, "seqs": plan.limits.max_seqs,
            "rows": plan.limits.max_rows, "context": plan.limits.context,
        },
        "kv": plan.kv.iter().map(|kv| json!({
            "dtype": text::kv_dtype_name(kv.dtype), "layers": kv.layers, "heads": kv.kv_heads, "dim": kv.head_dim,
            "window": kv.window, "bytes": kv.block_bytes() / KV_BLOCK as u64,
        })).collect::<Vec<_>>(),
        "code": {
            "functions": compiled.code.functions, "bytes": compiled.code.bytes.len(),
            "by": compiled.code.toolchain.join(", "),
        },
        "steps": costs,
        "stages": stage_list(imported, stages),
        "launches": launches(plan, &steps),
        "weights": weights(plan),
        "memory": buffers(plan),
        "stability": stability(plan),
        "speed": speed(&speed_of(compiled, options.target).collect::<Vec<_>>()),
    })
}

/// A step whose cost is shown.
struct Step {
    name: &'static str,
    tokens: u32,
    depth: u32,
}

impl Step {
    fn about(&self) -> String {
        let plural = if self.tokens == 1 { "" } else { "s" };
        format!(
            "{} token{plural} of one sequence with {} positions, one row of logits",
            self.tokens, self.depth
        )
    }
}

/// Decode at depth 512 and a prefill of 512, or what the plan holds of them.
fn steps(plan: &Plan) -> [Step; 2] {
    let depth = plan.limits.context.min(512);
    let tokens = plan.limits.max_tokens.min(depth);
    let step = |name, tokens| Step {
        name,
        tokens,
        depth,
    };
    [step("decode", 1), step("prefill", tokens)]
}

fn add(a: Cost, b: Cost) -> Cost {
    Cost {
        weight_bytes: a.weight_bytes + b.weight_bytes,
        kv_bytes: a.kv_bytes + b.kv_bytes,
        buffer_bytes: a.buffer_bytes + b.buffer_bytes,
        operations: a.operations + b.operations,
    }
}

fn cost_json(c: &Cost) -> Value {
    json!([c.weight_bytes, c.kv_bytes, c.buffer_bytes, c.operations])
}

/// A line of the page.
struct Row {
    /// The name that says which layer it is of.
    name: String,
    /// What it says.
    says: Value,
    /// What differs between layers that are alike.
    at: Value,
}

/// The layer that a name is of.
fn layer_of(name: &str) -> Option<u32> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// Rows by layer, those alike once: `[{layers, rows, at: a list for each layer}]`. What is of no layer comes before or after
/// them.
fn sections(rows: Vec<Row>) -> Value {
    #[derive(Default)]
    struct Layer {
        rows: Vec<Value>,
        at: Vec<Value>,
    }
    struct Section {
        layers: Vec<u32>,
        rows: Vec<Value>,
        at: Vec<Vec<Value>>,
    }
    let (mut before, mut after) = (Layer::default(), Layer::default());
    let mut layers: BTreeMap<u32, Layer> = BTreeMap::new();
    for row in rows {
        let layer = layer_of(&row.name);
        let place = match layer {
            Some(layer) => layers.entry(layer).or_default(),
            None if layers.is_empty() => &mut before,
            None => &mut after,
        };
        place.rows.push(match layer {
            Some(layer) => generalise(row.says, layer),
            None => row.says,
        });
        place.at.push(row.at);
    }
    let section = |layers, Layer { rows, at }| Section {
        layers,
        rows,
        at: vec![at],
    };
    let mut list = vec![section(Vec::new(), before)];
    for (number, layer) in layers {
        let alike = |s: &&mut Section| !s.layers.is_empty() && s.rows == layer.rows;
        match list.iter_mut().find(alike) {
            Some(found) => {
                found.layers.push(number);
                found.at.push(layer.at);
            }
            None => list.push(section(vec![number], layer)),
        }
    }
    list.push(section(Vec::new(), after));
    list.iter()
        .filter(|s| !s.rows.is_empty())
        .map(|s| json!({"layers": s.layers, "rows": s.rows, "at": s.at}))
        .collect()
}

/// The same for any layer: its own number and the one before are named by their place.
fn generalise(value: Value, layer: u32) -> Value {
    match value {
        Value::String(s) => {
            let own = s.replace(&format!("blk.{layer}."), "blk.{i}.");
            let previous = layer.checked_sub(1);
            Value::String(match previous {
                Some(p) => own.replace(&format!("blk.{p}."), "blk.{i-1}."),
                None => own,
            })
        }
        Value::Array(list) => list.into_iter().map(|v| generalise(v, layer)).collect(),
        Value::Object(map) => map
            .into_iter()
            .map(|(k, v)| (k, generalise(v, layer)))
            .collect(),
        other => other,
    }
}

/// The graph at first and after each pass.
fn stage_list(imported: &Graph, stages: &[Stage]) -> Value {
    let first = json!({
        "name": "imported", "about": "the model as its file describes it", "enabled": true,
        "before": 0, "after": imported.nodes.len(), "counts": {}, "sections": sections(node_rows(imported, None)),
    });
    let mut list = vec![first];
    let mut before = imported;
    for stage in stages {
        let rows = node_rows(&stage.graph, Some(before));
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        for change in rows.iter().filter_map(|r| r.says["change"].as_str()) {
            *counts.entry(change).or_default() += 1;
        }
        list.push(json!({
            "name": stage.pass.name, "about": stage.pass.about, "enabled": stage.enabled,
            "before": before.nodes.len(), "after": stage.graph.nodes.len(), "counts": counts,
            "sections": sections(rows),
        }));
        before = &stage.graph;
    }
    Value::Array(list)
}

/// The nodes of a graph, and how they differ from those of the same name before; with those that are gone, where they were.
fn node_rows(graph: &Graph, before: Option<&Graph>) -> Vec<Row> {
    let new = describe(graph);
    let Some(before) = before else {
        return new.into_iter().map(|n| n.row("same", None)).collect();
    };
    let old = describe(before);
    let place: BTreeMap<&str, usize> = old
        .iter()
        .enumerate()
        .map(|(i, n)| (n.name.as_str(), i))
        .collect();
    let kept: Vec<bool> = old
        .iter()
        .map(|o| new.iter().any(|n| n.name == o.name))
        .collect();
    let gone = |range: std::ops::Range<usize>| {
        range
            .filter(|&i| !kept[i])
            .map(|i| old[i].row("removed", None))
    };
    let mut out = changed_tensors(before, graph);
    let mut done = 0;
    for node in &new {
        let Some(&at) = place.get(node.name.as_str()) else {
            out.push(node.row("added", None));
            continue;
        };
        if at >= done {
            out.extend(gone(done..at));
            done = at + 1;
        }
        let was = &old[at];
        let same_op = (&was.types, was.op, &was.detail) == (&node.types, node.op, &node.detail);
        out.push(match (same_op, was.inputs == node.inputs) {
            (true, true) => node.row("same", None),
            (true, false) => node.row("rewired", Some(was)),
            (false, _) => node.row("changed", Some(was)),
        });
    }
    out.extend(gone(done..old.len()));
    out
}

/// Tensors that are packed otherwise than before.
fn changed_tensors(before: &Graph, after: &Graph) -> Vec<Row> {
    let transform = |t: Transform| match t {
        Transform::None => "rows in the file's order".to_string(),
        Transform::RopeHalves { head_dim } => format!("rope_halves={head_dim}"),
    };
    let old: BTreeMap<&str, Transform> = before
        .tensors
        .iter()
        .map(|t| (t.name.as_str(), t.transform))
        .collect();
    let changed = after.tensors.iter().filter_map(|t| {
        let was = *old.get(t.name.as_str())?;
        (was != t.transform).then(|| {
            let now = NodeText::tensor(&t.name, transform(t.transform));
            now.row("changed", Some(&NodeText::tensor(&t.name, transform(was))))
        })
    });
    changed.collect()
}

/// A node with its inputs by name: their numbers differ from pass to pass.
struct NodeText {
    name: String,
    types: String,
    op: &'static str,
    inputs: Vec<String>,
    detail: String,
    /// Its layer's number in the KV group, which `detail` calls `{k}`.
    kv_layer: Option<u32>,
}

impl NodeText {
    fn tensor(name: &str, detail: String) -> NodeText {
        NodeText {
            name: name.to_string(),
            types: String::new(),
            op: "tensor",
            inputs: Vec::new(),
            detail,
            kv_layer: None,
        }
    }

    fn row(&self, change: &str, was: Option<&NodeText>) -> Row {
        let says = |n: &NodeText| json!([n.types, n.op, n.inputs.join(", "), n.detail]);
        Row {
            name: self.name.clone(),
            says: json!({"change": change, "name": self.name, "is": says(self), "was": was.map(says)}),
            at: json!(self.kv_layer.or(was.and_then(|w| w.kv_layer))),
        }
    }
}

fn describe(graph: &Graph) -> Vec<NodeText> {
    let makers = graph.makers();
    let value_name = |v| match makers.get(&v).map(|&i| &graph.nodes[i]) {
        Some(node) if node.outputs.len() == 1 => node.name.clone(),
        Some(node) => {
            let output = node.outputs.iter().position(|&o| o == v).unwrap_or(0);
            format!("{}:{output}", node.name)
        }
        None => "?".to_string(),
    };
    let describe = |node: &Node| {
        let line = text::print_node(graph, node);
        // `%8:f32[T,576] %9:kv = matmul %7 %4 DETAIL # NAME`
        let (outputs, rest) = line.split_once("= ").unwrap_or(("", &line));
        let types: Vec<&str> = outputs
            .split(' ')
            .filter_map(|o| Some(o.split_once(':')?.1))
            .collect();
        let mut detail = rest.strip_prefix(node.op.name()).unwrap_or(rest);
        for input in &node.inputs {
            let operand = format!(" %{}", input.0);
            detail = detail.strip_prefix(operand.as_str()).unwrap_or(detail);
        }
        let comment = format!(" # {}", node.name);
        let detail = detail.strip_suffix(comment.as_str()).unwrap_or(detail);
        let (detail, kv_layer) = without_kv_layer(&node.op, detail.trim_start());
        NodeText {
            name: node.name.clone(),
            types: types.join(", "),
            op: node.op.name(),
            inputs: node.inputs.iter().map(|&v| value_name(v)).collect(),
            detail,
            kv_layer,
        }
    };
    graph.nodes.iter().map(describe).collect()
}

/// `layer=7` as `layer={k}` and `kv=0.7.key` as `kv=0.{k}.key`, and the 7.
fn without_kv_layer(op: &NodeOp, detail: &str) -> (String, Option<u32>) {
    if !matches!(
        op,
        NodeOp::Attention { .. } | NodeOp::KvWrite { .. } | NodeOp::MatMul { .. }
    ) {
        return (detail.to_string(), None);
    }
    let mut found = None;
    let mut number = |text: &str| {
        found = found.or(text.parse().ok());
        "{k}"
    };
    let words: Vec<String> = detail
        .split(' ')
        .map(|word| {
            if let Some(layer) = word.strip_prefix("layer=") {
                return format!("layer={}", number(layer));
            }
            let kv: Option<Vec<&str>> = word.strip_prefix("kv=").map(|w| w.split('.').collect());
            match kv.as_deref() {
                Some([group, layer, part]) => format!("kv={group}.{}.{part}", number(layer)),
                _ => word.to_string(),
            }
        })
        .collect();
    (words.join(" "), found)
}

fn launches(plan: &Plan, steps: &[Step]) -> Value {
    let names =
        |indices: &[u32]| -> Vec<&str> { indices.iter().map(|&i| launch_name(plan, i)).collect() };
    let row = |(index, launch): (usize, &Launch)| {
        let costs: Vec<Value> = steps
            .iter()
            .map(|s| cost_json(&cost(plan, &launch.op, s.tokens, s.depth)))
            .collect();
        let variants: Vec<Value> = launch
            .variants
            .iter()
            .map(|v| {
                let tile = match !v.parts.is_empty() {
                    true => format!("{} × {}", v.tile_rows, v.tile_cols),
                    false => v.tile_rows.to_string(),
                };
                let profiles: Vec<String> = v.profiles.iter().map(|p| p.to_string()).collect();
                // Where all take it, nothing is to be said.
                let profiles = match profiles.len() < plan.stability.len() {
                    true => profiles.join(", "),
                    false => String::new(),
                };
                json!([
                    v.min_rows,
                    v.max_rows,
                    part_names(v),
                    tile,
                    v.reason,
                    profiles
                ])
            })
            .collect();
        Row {
            name: launch.name.clone(),
            says: json!({
                "name": launch.name, "op": op_name(&launch.op), "after": names(&launch.deps),
                "weights": weights_of(plan, &launch.op), "costs": costs, "variants": variants,
            }),
            at: json!(index),
        }
    };
    sections(plan.launches.iter().enumerate().map(row).collect())
}

fn launch_name(plan: &Plan, index: u32) -> &str {
    plan.launches
        .get(index as usize)
        .map_or("?", |l| l.name.as_str())
}

/// The names of the matrices that an op reads.
fn weights_of<'a>(plan: &'a Plan, op: &Op) -> Vec<&'a str> {
    let indices: Vec<u32> = match op {
        Op::Embed { table, .. } => vec![*table],
        Op::RopeTable { freqs, .. } => vec![*freqs],
        Op::MatMul { segments, .. } | Op::ExpertMatMul { segments, .. } => {
            segments.iter().map(|s| s.weight).collect()
        }
        Op::Region { .. } | Op::Attention { .. } | Op::Route { .. } => Vec::new(),
    };
    let names = indices.iter().filter_map(|&i| plan.weights.get(i as usize));
    names.map(|w| w.name.as_str()).collect()
}

fn weights(plan: &Plan) -> Value {
    let rows = plan.weights.iter().map(|w| {
        let slices: Vec<String> = w
            .slices
            .iter()
            .map(|s| format!("{} ({} rows)", s.tensor, s.rows))
            .collect();
        Row {
            name: w.name.clone(),
            says: json!({
                "name": w.name, "encoding": text::encoding_name(w.encoding), "rows": w.rows, "cols": w.cols,
                "layout": format!("{:?}", w.layout), "interleave": w.interleave, "bytes": w.len, "from": slices,
            }),
            at: json!(w.offset),
        }
    });
    sections(rows.collect())
}

/// The stability profiles, each with its rules: when, what, why.
fn stability(plan: &Plan) -> Value {
    let profile = |p: &Profile| {
        let rules: Vec<Value> = p
            .rules
            .iter()
            .map(|rule| json!([rule.when, rule.choice, rule.reason]))
            .collect();
        json!({"name": p.stability.to_string(), "launched": launched(p), "rules": rules})
    };
    plan.stability.iter().map(profile).collect()
}

/// Steps, and how long each of their kernels takes, in microseconds; null where there is no model of the target's speed.
fn speed(models: &[Model]) -> Value {
    if models.is_empty() {
        return Value::Null;
    }
    let us = |seconds: f64| (seconds * 1e7).round() / 10.0;
    let step = |(gpu, step): (Option<&str>, Predicted)| {
        let kernels = step.kernels.iter().map(|(launch, kernel, t)| {
            let times = [t.all, t.memory, t.vector, t.matrix, t.shared].map(us);
            Row {
                name: (*launch).to_string(),
                says: json!({
                    "name": launch, "kernel": kernel.symbol, "bound": t.bound(), "times": times,
                }),
                at: Value::Null,
            }
        });
        let gpu = gpu.map_or(String::new(), |gpu| format!("{gpu}: "));
        json!({
            "name": gpu + &step.name, "rate": step.rate, "us": us(step.seconds), "count": step.kernels.len(),
            "read": step.read, "operations": step.operations, "kernels": sections(kernels.collect()),
        })
    };
    let names: Vec<String> = models.iter().map(Model::of_what).collect();
    let steps = models.iter().flat_map(|model| {
        let name = (models.len() > 1).then_some(model.gpu.name);
        model.steps().into_iter().map(move |step| (name, step))
    });
    json!({"of": names.join(" and "), "steps": steps.map(step).collect::<Vec<_>>()})
}

/// The buffers, as a list for the table and one for the drawing.
fn buffers(plan: &Plan) -> Value {
    let last = plan.launches.len().saturating_sub(1);
    let lives = memory::lives(plan);
    let mut apart = 0;
    let (mut drawn, mut listed) = (Vec::new(), Vec::new());
    for (b, life) in plan.buffers.iter().zip(lives) {
        let bytes = rows(plan, b.extent) as u64 * b.row_bytes();
        apart += bytes;
        let (from, to) = life.map_or((0, last), |(from, to)| (from, to.min(last)));
        let role = match b.place.role {
            Role::Scratch => "scratch",
            Role::Input(_) => "input",
            Role::Output(_) => "output",
        };
        drawn.push(json!([b.name, b.place.offset, bytes, from, to, role]));
        let ty = format!(
            "{}[{},{}]",
            text::dtype_name(b.dtype),
            text::dim_name(b.extent),
            b.cols
        );
        listed.push(Row {
            name: b.name.clone(),
            says: json!({"name": b.name, "type": ty, "bytes": bytes, "row": b.row_bytes(), "role": role}),
            at: json!([b.place.offset, from, to]),
        });
    }
    let names: Vec<&str> = plan.launches.iter().map(|l| l.name.as_str()).collect();
    json!({
        "arena": plan.arena_bytes, "apart": apart, "launches": names, "drawn": drawn, "listed": sections(listed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_alike_are_said_once() {
        let row = |name: &str, says: &str| Row {
            name: name.to_string(),
            says: json!([name, says]),
            at: json!(name.len()),
        };
        let found = sections(vec![
            row("in", "x"),
            row("blk.0.a", "reads in"),
            row("blk.1.a", "reads blk.0.a"),
            row("blk.2.a", "reads blk.1.a"),
            row("out", "reads blk.2.a"),
        ]);
        let layers: Vec<&Value> = found
            .as_array()
            .unwrap()
            .iter()
            .map(|s| &s["layers"])
            .collect();
        assert_eq!(
            layers,
            [&json!([]), &json!([0]), &json!([1, 2]), &json!([])]
        );
        assert_eq!(
            found[2]["rows"],
            json!([["blk.{i}.a", "reads blk.{i-1}.a"]])
        );
        assert_eq!(found[2]["at"], json!([[7], [7]]));
    }

    #[test]
    fn the_page_loads_nothing() {
        assert_eq!(TEMPLATE.matches(MARK).count(), 1);
        for bad in ["://", "src=", "@import", "url(", "innerHTML", "fetch("] {
            assert!(!TEMPLATE.contains(bad), "the page has {bad}");
        }
    }

    #[test]
    fn no_name_ends_the_script() {
        let name = "</script><b>\u{2028}\"\\";
        let page = render(&json!({ "name": name })).unwrap();
        assert!(!page.contains("</script><b>"));
        let (_, rest) = page.split_once(r#"type="application/json">"#).unwrap();
        let (json, _) = rest.split_once("</script>").unwrap();
        let read: Value = serde_json::from_str(json).unwrap();
        assert_eq!(read["name"], name);
    }
}
