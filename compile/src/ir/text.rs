//! The graph as text, a line each, and back. `print` and `parse` are inverse on renumbered graphs.
//!
//! ```text
//! graph llama
//! kv f16 layers=30 heads=3 dim=64
//! tensor @blk.0.attn_q.weight q4_1 [576, 576] file rope_halves=64
//! %8:f32[T,576] %9:kv %10:kv = matmul %7 %1 %2 { @q -> rope=64 } { @k -> kv=0.0.key rope=64 } # blk.0.qkv
//! logits %99
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bundle_format::plan::{DType, Dim, Encoding, Input, KvDType, KvGroup};
use bundle_format::region::KvPart;

use super::graph::{
    Graph, Node, RopeFreqs, RopeScaling, Tensor, TensorId, TensorSource, Transform, ValueId,
};
use super::op::{Activation, Epilogue, HeadNorm, Op, Part, Prologue, Type};

/// The graph as text.
pub fn print(graph: &Graph) -> String {
    let mut out = format!("graph {}\n", graph.arch);
    for kv in &graph.kv {
        let window = kv
            .window
            .map(|w| format!(" window={w}"))
            .unwrap_or_default();
        let _ = writeln!(
            out,
            "kv {} layers={} heads={} dim={}{window}",
            kv_dtype_name(kv.dtype),
            kv.layers,
            kv.kv_heads,
            kv.head_dim
        );
    }
    for t in &graph.tensors {
        let source = match &t.source {
            TensorSource::File {
                tensor,
                first_row: 0,
            } if *tensor == t.name => "file".to_string(),
            TensorSource::File { tensor, first_row } => {
                format!("file tensor={tensor} first={first_row}")
            }
            TensorSource::Stack { tensors } => format!("stack tensors={}", tensors.join("+")),
            TensorSource::RopeFreqs(freqs) => print_rope_freqs(freqs),
        };
        let transform = match t.transform {
            Transform::None => String::new(),
            Transform::RopeHalves { head_dim } => format!(" rope_halves={head_dim}"),
        };
        let (name, encoding) = (&t.name, encoding_name(t.encoding));
        let _ = writeln!(
            out,
            "tensor @{name} {encoding} [{}, {}] {source}{transform}",
            t.rows, t.cols
        );
    }
    for node in &graph.nodes {
        let _ = writeln!(out, "{}", print_node(graph, node));
    }
    if let Some(hidden) = graph.hidden {
        let _ = writeln!(out, "hidden %{}", hidden.0);
    }
    let _ = writeln!(out, "logits %{}", graph.logits.0);
    out
}

/// One node as a line of text.
pub fn print_node(graph: &Graph, node: &Node) -> String {
    let mut out = String::new();
    for &v in &node.outputs {
        let _ = write!(out, "%{}:{} ", v.0, print_type(graph.ty(v)));
    }
    let _ = write!(out, "= {}", node.op.name());
    for &v in &node.inputs {
        let _ = write!(out, " %{}", v.0);
    }
    let tensor = |id: TensorId| format!("@{}", graph.tensor(id).name);
    let mut flag = |on: bool, name: &str| {
        if on {
            out.push(' ');
            out.push_str(name);
        }
    };
    match &node.op {
        Op::Input(Input::Slots(group)) => flag(true, &format!("slots={group}")),
        Op::Input(input) => flag(true, input_name(*input)),
        Op::Embed { table, scale } => flag(true, &format!("{} scale={scale:?}", tensor(*table))),
        Op::RopeTable { freqs, mscale } => {
            flag(true, &format!("{} mscale={mscale:?}", tensor(*freqs)))
        }
        Op::Add => {}
        Op::GatherRows { to } => flag(*to != DType::F32, dtype_name(*to)),
        Op::Quantise { to } => flag(true, dtype_name(*to)),
        Op::RmsNorm {
            weight,
            eps,
            add,
            post,
            gather,
            keep,
            to,
        } => {
            flag(true, &format!("{} eps={eps:?}", tensor(*weight)));
            flag(*add, "add");
            if let Some(post) = post {
                flag(true, &format!("post={}", graph.tensor(*post).name));
            }
            flag(*gather, "gather");
            flag(*keep, "keep");
            flag(*to != DType::F32, dtype_name(*to));
        }
        Op::Bias { bias } => flag(true, &tensor(*bias)),
        Op::HeadNorm { norm } => flag(true, &format!("{} eps={:?}", tensor(norm.weight), norm.eps)),
        Op::MatMul {
            prologue,
            parts,
            experts,
        } => {
            if let Some(experts) = experts {
                flag(true, &format!("experts={experts}"));
            }
            if let Some(norm) = prologue {
                let weight = &graph.tensor(norm.weight).name;
                flag(true, &format!("norm={weight} eps={:?}", norm.eps));
                flag(norm.add, "add");
                if let Some(post) = norm.post {
                    flag(true, &format!("post={}", graph.tensor(post).name));
                }
                flag(norm.keep, "keep");
            }
            for part in parts {
                let mut tensors: Vec<String> = part.tensors.iter().map(|&t| tensor(t)).collect();
                if let Some(bias) = part.bias {
                    tensors.push(format!("bias={}", graph.tensor(bias).name));
                }
                if let Some(norm) = part.norm {
                    tensors.push(format!(
                        "norm={} eps={:?}",
                        graph.tensor(norm.weight).name,
                        norm.eps
                    ));
                }
                flag(
                    true,
                    &format!(
                        "{{ {} -> {} }}",
                        tensors.join(" "),
                        print_epilogue(part.epilogue)
                    ),
                );
            }
        }
        Op::Rope { head_dim, halves } => {
            flag(true, &format!("head_dim={head_dim}"));
            flag(*halves, "halves");
        }
        Op::KvWrite { group, layer, part } => {
            flag(true, &format!("kv={group}.{layer}.{}", part_name(*part)))
        }
        Op::Attention {
            group,
            layer,
            heads,
            scale,
            to,
        } => {
            flag(
                true,
                &format!("group={group} layer={layer} heads={heads} scale={scale:?}"),
            );
            flag(*to != DType::F32, dtype_name(*to));
        }
        Op::Glu { to, .. } => flag(*to != DType::F32, dtype_name(*to)),
        Op::Route {
            used,
            renormalise,
            scale,
        } => {
            flag(true, &format!("used={used} scale={scale:?}"));
            flag(*renormalise, "renormalise");
        }
        Op::Combine { shared } => flag(*shared, "shared"),
    }
    let _ = write!(out, " # {}", node.name);
    out
}

fn print_rope_freqs(freqs: &RopeFreqs) -> String {
    let RopeFreqs {
        base,
        dim,
        scaling,
        factors,
    } = freqs;
    let mut out = format!("rope_freqs base={base:?} dim={dim}");
    match scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => {
            let _ = write!(out, " linear={factor:?}");
        }
        RopeScaling::Yarn {
            factor,
            original,
            beta_fast,
            beta_slow,
        } => {
            let _ = write!(
                out,
                " yarn={factor:?} original={original} fast={beta_fast:?} slow={beta_slow:?}"
            );
        }
    }
    if let Some(factors) = factors {
        let _ = write!(out, " factors={factors}");
    }
    out
}

fn print_type(ty: Type) -> String {
    match ty {
        Type::Kv => "kv".to_string(),
        Type::Rows { dtype, dim, cols } => {
            format!("{}[{},{cols}]", dtype_name(dtype), dim_name(dim))
        }
    }
}

/// A symbolic extent in text form.
pub fn dim_name(dim: Dim) -> String {
    match dim {
        Dim::Tokens => "T".to_string(),
        Dim::Rows => "R".to_string(),
        Dim::Pairs(each) => format!("T*{each}"),
        Dim::One => "1".to_string(),
    }
}

/// The name of a type of keys and values: `q8_0`.
pub fn kv_dtype_name(dtype: KvDType) -> &'static str {
    match dtype {
        KvDType::F16 | KvDType::F16Rows => "f16",
        KvDType::Q8_0 | KvDType::Q8Rows => "q8_0",
    }
}

/// An element type's name in text form.
pub fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "f32",
        DType::U32 => "u32",
        DType::Q8 => "q8",
        DType::Q11 => "q11",
        DType::F16 => "f16",
        DType::Q14 => "q14",
        DType::Q8K => "q8k",
    }
}

fn print_epilogue(epilogue: Epilogue) -> String {
    match epilogue {
        Epilogue::Store => "store".to_string(),
        Epilogue::Rope { head_dim } => format!("rope={head_dim}"),
        Epilogue::KvWrite {
            rope,
            group,
            layer,
            part,
        } => {
            let rope = rope.map(|h| format!(" rope={h}")).unwrap_or_default();
            format!("kv={group}.{layer}.{}{rope}", part_name(part))
        }
        Epilogue::Glu {
            activation,
            to: DType::F32,
        } => activation.glu_name().to_string(),
        Epilogue::Glu { activation, to } => format!("{} {}", activation.glu_name(), dtype_name(to)),
    }
}

/// An encoding's name in text form, GGUF's in lower case.
pub fn encoding_name(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::F32 => "f32",
        Encoding::F16 => "f16",
        Encoding::Q4_0 => "q4_0",
        Encoding::Q4_1 => "q4_1",
        Encoding::Q8_0 => "q8_0",
        Encoding::BF16 => "bf16",
        Encoding::Q5_0 => "q5_0",
        Encoding::Q5_1 => "q5_1",
        Encoding::Q2_K => "q2_k",
        Encoding::Q3_K => "q3_k",
        Encoding::Q4_K => "q4_k",
        Encoding::Q5_K => "q5_k",
        Encoding::Q6_K => "q6_k",
        Encoding::IQ4_NL => "iq4_nl",
        Encoding::IQ4_XS => "iq4_xs",
        Encoding::MXFP4 => "mxfp4",
    }
}

fn input_name(input: Input) -> &'static str {
    match input {
        Input::Tokens => "tokens",
        Input::Positions => "positions",
        Input::Sequences => "sequences",
        Input::Slots(_) => "slots",
        Input::Rows => "rows",
    }
}

fn part_name(part: KvPart) -> &'static str {
    match part {
        KvPart::Key => "key",
        KvPart::Value => "value",
    }
}

/// Reads what [`print`] writes. The error names the line and what was expected there.
pub fn parse(text: &str) -> Result<Graph, String> {
    let mut parser = Parser {
        graph: Graph::new(""),
        tensors: BTreeMap::new(),
    };
    let mut ended = false;
    for (number, line) in text
        .lines()
        .enumerate()
        .filter(|(_, l)| !l.trim().is_empty())
    {
        let words: Vec<&str> = line.split_whitespace().collect();
        if ended {
            return Err(format!("line {}: text behind the result", number + 1));
        }
        ended = parser
            .line(&words)
            .map_err(|e| format!("line {}: {e}: {line}", number + 1))?;
    }
    if !ended {
        return Err("no line 'logits %N'".to_string());
    }
    Ok(parser.graph)
}

struct Parser {
    graph: Graph,
    tensors: BTreeMap<String, TensorId>,
}

impl Parser {
    /// Takes a line; true for the last.
    fn line(&mut self, words: &[&str]) -> Result<bool, String> {
        match words {
            ["graph", arch] => self.graph.arch = arch.to_string(),
            ["kv", dtype, rest @ ..] => self.graph.kv.push(KvGroup {
                dtype: [KvDType::F16, KvDType::Q8_0]
                    .into_iter()
                    .find(|&d| kv_dtype_name(d) == *dtype)
                    .ok_or("unknown type of keys and values")?,
                layers: number(rest, "layers")?,
                kv_heads: number(rest, "heads")?,
                head_dim: number(rest, "dim")?,
                window: optional(rest, "window")?,
            }),
            ["tensor", name, encoding, rows, cols, source, rest @ ..] => {
                let name = name.strip_prefix('@').ok_or("expected @name")?.to_string();
                let encoding = kernels::quant::ENCODINGS
                    .into_iter()
                    .find(|&e| encoding_name(e) == *encoding);
                let source = match *source {
                    "file" => TensorSource::File {
                        tensor: optional(rest, "tensor")?.unwrap_or_else(|| name.clone()),
                        first_row: optional(rest, "first")?.unwrap_or(0),
                    },
                    "stack" => TensorSource::Stack {
                        tensors: number::<String>(rest, "tensors")?
                            .split('+')
                            .map(str::to_string)
                            .collect(),
                    },
                    "rope_freqs" => TensorSource::RopeFreqs(parse_rope_freqs(rest)?),
                    other => return Err(format!("unknown source '{other}'")),
                };
                let transform = match optional(rest, "rope_halves")? {
                    Some(head_dim) => Transform::RopeHalves { head_dim },
                    None => Transform::None,
                };
                let id = self.graph.new_tensor(Tensor {
                    name: name.clone(),
                    encoding: encoding.ok_or("unknown encoding")?,
                    rows: plain(rows.trim_start_matches('[').trim_end_matches(','))?,
                    cols: plain(cols.trim_end_matches(']'))?,
                    source,
                    transform,
                });
                self.tensors.insert(name, id);
            }
            ["hidden", value] => self.graph.hidden = Some(self.value(value)?),
            ["logits", value] => {
                self.graph.logits = self.value(value)?;
                return Ok(true);
            }
            _ => self.node(words)?,
        }
        Ok(false)
    }

    fn node(&mut self, words: &[&str]) -> Result<(), String> {
        let equals = words.iter().position(|&w| w == "=").ok_or("expected '='")?;
        let hash = words
            .iter()
            .position(|&w| w == "#")
            .ok_or("expected '# name'")?;
        let (name, [op, rest @ ..]) = (words[hash + 1..].join(" "), &words[equals + 1..hash])
        else {
            return Err("expected an operation".into());
        };
        let mut outputs = Vec::new();
        for word in &words[..equals] {
            let (id, ty) = word.split_once(':').ok_or("expected %N:type")?;
            let id = self.value(id)?;
            if id.0 as usize != self.graph.values.len() {
                return Err(format!(
                    "values are numbered in order: expected %{}",
                    self.graph.values.len()
                ));
            }
            outputs.push(self.graph.new_value(parse_type(ty)?));
        }
        let count = rest.iter().take_while(|w| w.starts_with('%')).count();
        let inputs = rest[..count]
            .iter()
            .map(|w| self.value(w))
            .collect::<Result<_, _>>()?;
        let op = self.op(op, &rest[count..])?;
        self.graph.nodes.push(Node {
            name,
            op,
            inputs,
            outputs,
        });
        Ok(())
    }

    fn op(&self, name: &str, args: &[&str]) -> Result<Op, String> {
        let flag = |name: &str| args.contains(&name);
        Ok(match name {
            "input" => Op::Input(match args {
                ["tokens"] => Input::Tokens,
                ["positions"] => Input::Positions,
                ["sequences"] => Input::Sequences,
                ["rows"] => Input::Rows,
                _ => Input::Slots(number(args, "slots")?),
            }),
            "embed" => Op::Embed {
                table: self.tensor(args)?,
                scale: number(args, "scale")?,
            },
            "rope_table" => Op::RopeTable {
                freqs: self.tensor(args)?,
                mscale: number(args, "mscale")?,
            },
            "gather_rows" => Op::GatherRows {
                to: result_type(args),
            },
            "add" => Op::Add,
            "rms_norm" => Op::RmsNorm {
                weight: self.tensor(args)?,
                eps: number(args, "eps")?,
                add: flag("add"),
                post: self.named(args, "post")?,
                gather: flag("gather"),
                keep: flag("keep"),
                to: result_type(args),
            },
            "bias" => Op::Bias {
                bias: self.tensor(args)?,
            },
            "head_norm" => Op::HeadNorm {
                norm: HeadNorm {
                    weight: self.tensor(args)?,
                    eps: number(args, "eps")?,
                },
            },
            "quantise" => Op::Quantise {
                to: result_type(args),
            },
            "matmul" => {
                let start = args.iter().position(|&w| w == "{").unwrap_or(args.len());
                let (before, args) = args.split_at(start);
                let groups = args.split(|&w| w == "}").filter(|g| !g.is_empty());
                let prologue = match self.named(before, "norm")? {
                    Some(weight) => Some(Prologue {
                        weight,
                        eps: number(before, "eps")?,
                        add: before.contains(&"add"),
                        post: self.named(before, "post")?,
                        keep: before.contains(&"keep"),
                    }),
                    None => None,
                };
                Op::MatMul {
                    prologue,
                    parts: groups.map(|g| self.part(g)).collect::<Result<_, _>>()?,
                    experts: optional(before, "experts")?,
                }
            }
            "rope" => Op::Rope {
                head_dim: number(args, "head_dim")?,
                halves: flag("halves"),
            },
            "kv_write" => {
                let (group, layer, part) = kv_place(args)?;
                Op::KvWrite { group, layer, part }
            }
            "attention" => Op::Attention {
                group: number(args, "group")?,
                layer: number(args, "layer")?,
                heads: number(args, "heads")?,
                scale: number(args, "scale")?,
                to: result_type(args),
            },
            "swiglu" | "geglu" => Op::Glu {
                activation: glu(name),
                to: result_type(args),
            },
            "route" => Op::Route {
                used: number(args, "used")?,
                renormalise: flag("renormalise"),
                scale: number(args, "scale")?,
            },
            "combine" => Op::Combine {
                shared: flag("shared"),
            },
            other => return Err(format!("unknown operation '{other}'")),
        })
    }

    fn part(&self, words: &[&str]) -> Result<Part, String> {
        let arrow = words
            .iter()
            .position(|&w| w == "->")
            .ok_or("expected '->'")?;
        let (made_of, args) = (&words[..arrow], &words[arrow + 1..]);
        let names = made_of.iter().filter(|w| w.starts_with('@'));
        let tensors = names.map(|w| self.tensor(&[w])).collect::<Result<_, _>>()?;
        let bias = self.named(made_of, "bias")?;
        let norm = match self.named(made_of, "norm")? {
            Some(weight) => Some(HeadNorm {
                weight,
                eps: number(made_of, "eps")?,
            }),
            None => None,
        };
        let epilogue = match args {
            ["store"] => Epilogue::Store,
            [name @ ("swiglu" | "geglu"), rest @ ..] => Epilogue::Glu {
                activation: glu(name),
                to: result_type(rest),
            },
            _ if args.iter().any(|w| w.starts_with("kv=")) => {
                let (group, layer, part) = kv_place(args)?;
                Epilogue::KvWrite {
                    rope: optional(args, "rope")?,
                    group,
                    layer,
                    part,
                }
            }
            _ => Epilogue::Rope {
                head_dim: number(args, "rope")?,
            },
        };
        Ok(Part {
            tensors,
            bias,
            norm,
            epilogue,
        })
    }

    fn value(&self, word: &str) -> Result<ValueId, String> {
        Ok(ValueId(plain(
            word.strip_prefix('%').ok_or("expected %N")?,
        )?))
    }

    /// The tensor of `key=name`.
    fn named(&self, args: &[&str], key: &str) -> Result<Option<TensorId>, String> {
        let name: Option<String> = optional(args, key)?;
        name.map(|n| self.tensor(&[&format!("@{n}")])).transpose()
    }

    fn tensor(&self, args: &[&str]) -> Result<TensorId, String> {
        let name = args
            .iter()
            .find_map(|w| w.strip_prefix('@'))
            .ok_or("expected @tensor")?;
        self.tensors
            .get(name)
            .copied()
            .ok_or_else(|| format!("unknown tensor '{name}'"))
    }
}

fn parse_type(text: &str) -> Result<Type, String> {
    if text == "kv" {
        return Ok(Type::Kv);
    }
    let bad = || format!("unknown type '{text}'");
    let (dtype, shape) = text
        .strip_suffix(']')
        .and_then(|t| t.split_once('['))
        .ok_or_else(bad)?;
    let (dim, cols) = shape.split_once(',').ok_or_else(bad)?;
    let dtype = match dtype {
        "f32" => DType::F32,
        "u32" => DType::U32,
        "q8" => DType::Q8,
        "q11" => DType::Q11,
        "f16" => DType::F16,
        "q14" => DType::Q14,
        "q8k" => DType::Q8K,
        _ => return Err(bad()),
    };
    let dim = match dim {
        "T" => Dim::Tokens,
        "R" => Dim::Rows,
        "1" => Dim::One,
        _ => Dim::Pairs(plain(dim.strip_prefix("T*").ok_or_else(bad)?)?),
    };
    Ok(Type::Rows {
        dtype,
        dim,
        cols: plain(cols)?,
    })
}

fn glu(name: &str) -> Activation {
    if name == "geglu" {
        Activation::GeluTanh
    } else {
        Activation::Silu
    }
}

fn parse_rope_freqs(args: &[&str]) -> Result<RopeFreqs, String> {
    let (linear, yarn) = (optional(args, "linear")?, optional(args, "yarn")?);
    let scaling = match (linear, yarn) {
        (None, None) => RopeScaling::None,
        (Some(factor), None) => RopeScaling::Linear { factor },
        (None, Some(factor)) => RopeScaling::Yarn {
            factor,
            original: number(args, "original")?,
            beta_fast: number(args, "fast")?,
            beta_slow: number(args, "slow")?,
        },
        (Some(_), Some(_)) => return Err("expected linear= or yarn=, not both".into()),
    };
    Ok(RopeFreqs {
        base: number(args, "base")?,
        dim: number(args, "dim")?,
        scaling,
        factors: optional(args, "factors")?,
    })
}

/// The element type of a result: `f16` or a quantised one among the arguments, or f32.
fn result_type(args: &[&str]) -> DType {
    let named = DType::QUANTISED
        .into_iter()
        .chain([DType::F16])
        .find(|&t| args.contains(&dtype_name(t)));
    named.unwrap_or(DType::F32)
}

fn kv_place(args: &[&str]) -> Result<(u32, u32, KvPart), String> {
    let place: String = number(args, "kv")?;
    let parts: Vec<&str> = place.split('.').collect();
    let part = match parts.get(2) {
        Some(&"key") => KvPart::Key,
        Some(&"value") => KvPart::Value,
        _ => return Err("expected kv=GROUP.LAYER.key or .value".into()),
    };
    Ok((plain(parts[0])?, plain(parts[1])?, part))
}

fn plain<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("'{text}' is not a number"))
}

/// The value of `key=value`.
fn number<T: std::str::FromStr>(args: &[&str], key: &str) -> Result<T, String> {
    optional(args, key)?.ok_or_else(|| format!("expected {key}="))
}

fn optional<T: std::str::FromStr>(args: &[&str], key: &str) -> Result<Option<T>, String> {
    let found = args
        .iter()
        .find_map(|w| w.strip_prefix(key)?.strip_prefix('='));
    found
        .map(|v| v.parse().map_err(|_| format!("{key}={v} can't be read")))
        .transpose()
}
