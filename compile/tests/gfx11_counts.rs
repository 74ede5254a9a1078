//! The counts that the model of speed rests on (`codegen::Work`) against what the simulator of gfx1151 executes: each kernel of a
//! model's products and attention, by itself, on memory of zeros.

use std::collections::BTreeMap;

use bundle_format::gpu::{Arg, Extent, Kernel};
use bundle_format::plan::{Dim, Encoding, Input, Op, Plan, Role};
use bundle_format::target::Target;
use fastc::codegen::{Count, Turns};
use fastc::driver::{self, Compiled, Options};
use fastc::gguf::Gguf;
use fastc::progress::Silent;
use fastc::synth;
use gfx11_sim::{CodeObject, Memory, Stats, launch};

/// Instructions of a wave that may be counted and not executed, whatever a kernel does.
const PATHS: f64 = 100.0;

/// Positions that each sequence holds.
const DEPTH: u32 = 512;

fn compile(shape: &str, encoding: Encoding) -> Compiled {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let options = synth::Options {
        shape: synth::Shape::named(shape).unwrap(),
        encoding,
        layers: Some(1),
        vocab: None,
        seed: 1,
        output: &path,
    };
    synth::synth(&options, &Silent).unwrap();
    let model = std::fs::read(path).unwrap();
    let gguf = Gguf::parse(&model).unwrap();
    let options = Options {
        draws: false,
        ..Options::new(Target::Gfx1151)
    };
    driver::compile_graph(&gguf, &options, |_| {}, |_| {}).unwrap_or_else(|e| panic!("{e}"))
}

/// A plan's memory: an allocation for each thing that arguments point to.
struct Machine<'p> {
    plan: &'p Plan,
    memory: Memory,
    object: CodeObject,
    known: BTreeMap<String, u64>,
}

impl<'p> Machine<'p> {
    fn new(compiled: &'p Compiled) -> Machine<'p> {
        let memory = Memory::new();
        let object = CodeObject::load(&memory, &compiled.code.bytes).unwrap();
        Machine {
            plan: &compiled.plan,
            memory,
            object,
            known: BTreeMap::new(),
        }
    }

    fn words(&mut self, name: &str, words: &[u32]) -> u64 {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let address = self.zeros(name, bytes.len() as u64);
        self.memory.write(address, &bytes).unwrap();
        address
    }

    fn zeros(&mut self, name: &str, len: u64) -> u64 {
        if let Some(&address) = self.known.get(name) {
            return address;
        }
        let len = len.next_multiple_of(64) + 64;
        let address = self.memory.alloc(len);
        self.memory.fill(address, 0, len).unwrap();
        self.known.insert(name.to_string(), address);
        address
    }

    /// What an argument is in a step of `rows` tokens: of one sequence if they are a prompt's, else of one each.
    fn argument(&mut self, kernel: &Kernel, arg: Arg, rows: u32, prompt: bool) -> u64 {
        let (plan, name) = (self.plan, format!("{arg:?}"));
        match arg {
            Arg::Counts => {
                let tiles = if prompt { rows.div_ceil(64) } else { rows };
                let sequences = if prompt { 1 } else { rows };
                self.words("counts", &[rows, sequences, rows, tiles])
            }
            Arg::Buffer(index) => {
                let b = &plan.buffers[index as usize];
                match b.place.role {
                    Role::Input(Input::Positions) if !prompt => {
                        self.words("positions", &vec![DEPTH - 1; rows as usize])
                    }
                    _ => self.zeros(&name, u64::from(rows) * b.row_bytes()),
                }
            }
            Arg::Weight(index) => self.zeros(&name, plan.weights[index as usize].len),
            Arg::Kv { group, .. } => self.zeros(&name, plan.kv[group as usize].part_bytes()),
            Arg::Tables(_) => self.zeros(&name, u64::from(rows * DEPTH / 16 * 4)),
            Arg::TableStride => u64::from(DEPTH / 16),
            Arg::Tiles => {
                let from = DEPTH - rows;
                let tile = |i: u32| [64 * i, (rows - 64 * i).min(64), 0, from + 64 * i];
                let tiles: Vec<u32> = (0..rows.div_ceil(64)).flat_map(tile).collect();
                self.words("tiles", &tiles)
            }
            Arg::Workspace => self.zeros("workspace", kernel.workspace.max(64)),
            Arg::Tickets => self.zeros("tickets", u64::from(kernel.tickets.max(1)) * 4),
            Arg::KvBlocks => 1,
            Arg::Draws | Arg::Drawn => panic!("{}: no kernel that draws", kernel.symbol),
        }
    }

    fn run(&mut self, kernel: &Kernel, rows: u32, prompt: bool) -> Stats {
        self.known.retain(|name, _| name.starts_with("Weight"));
        let mut args = Vec::new();
        for &arg in &kernel.args {
            args.extend(self.argument(kernel, arg, rows, prompt).to_le_bytes());
        }
        let grid = kernel.grid.map(|extent| match extent {
            Extent::Fixed(n) => n,
            Extent::Rows(n) | Extent::Tiles(n) => rows.div_ceil(n),
        });
        let block = [kernel.threads, 1, 1];
        let function = self.object.kernel(&kernel.symbol).unwrap();
        launch(
            &self.memory,
            function,
            grid,
            block,
            kernel.shared,
            &args,
            &gfx11_sim::Options::fast(),
        )
        .unwrap_or_else(|fault| panic!("{}: {fault}", kernel.symbol))
    }
}

/// What the simulator executed, as the model counts it, a wave.
fn executed(stats: &Stats) -> Count {
    let (c, waves) = (&stats.classes, stats.waves as f64);
    Count {
        vector: (c.valu + c.dual + c.dot + 4 * c.transcendental) as f64 / waves,
        matrix: c.wmma as f64 / waves,
        ..Count::default()
    }
}

/// Holds each kind of kernel against the simulator: vector cycles of products within `most`, their matrix instructions exactly.
fn check(shape: &str, encoding: Encoding, most: f64) {
    let compiled = compile(shape, encoding);
    let mut machine = Machine::new(&compiled);
    let mut checked = 0;
    for launch in &compiled.plan.launches {
        let of_tokens = match &launch.op {
            Op::MatMul { x, .. } => compiled.plan.buffers[*x as usize].extent == Dim::Tokens,
            Op::Attention { .. } => true,
            _ => false,
        };
        for variant in launch.variants.iter().filter(|_| of_tokens) {
            let rows = match variant.max_rows {
                few @ ..=32 => few,
                _ => 128,
            };
            let prompt = variant.max_rows > 32;
            for kernel in &variant.kernels {
                let found = executed(&machine.run(kernel, rows, prompt));
                let behind = if prompt { rows - 1 } else { 0 };
                let seen = f64::from(DEPTH) - f64::from(behind) / 2.0;
                let work = compiled.code.work[&kernel.symbol];
                // Blocks of parts that there are not end at once.
                let (parts, all) = match (work.turns, kernel.grid[2]) {
                    (Turns::Attention(context), Extent::Fixed(all)) => {
                        (context.parts(seen, f64::from(all)), f64::from(all))
                    }
                    _ => (1.0, 1.0),
                };
                let mut counted = Count::default();
                counted.add(&work.of_warp((seen / parts).ceil()), parts / all);
                let off = counted.vector / found.vector - 1.0;
                println!(
                    "{shape} {encoding:?} {:<20} rows {rows:>3}: vector {:>8.0} of {:>8.0} ({:>+5.1}%), matrix {:>6.0} of {:>6.0}",
                    kernel.symbol,
                    counted.vector,
                    found.vector,
                    100.0 * off,
                    counted.matrix,
                    found.matrix
                );
                let is = |name: &str| kernel.symbol.starts_with(name);
                // Attention counts what is rarely done as if it always were: results that a new maximum scales, parts that are
                // merged. Wavefronts whose queries see nothing of a step leave it out.
                let (least, most, of_matrix) = match () {
                    () if is("matmul") => (-most, most, 0.0),
                    () if is("decode") || is("prefill") => (-most, 1.0, 0.15),
                    () => continue,
                };
                // A short kernel is mostly its epilogue, which has ways that are not taken.
                let near = (counted.vector - found.vector).abs() <= PATHS;
                let symbol = &kernel.symbol;
                assert!(near || (least..=most).contains(&off), "{symbol}: {off:.3}");
                let off = (counted.matrix - found.matrix).abs();
                assert!(off <= of_matrix * found.matrix, "{}: {off}", kernel.symbol);
                checked += 1;
            }
        }
    }
    assert!(checked >= 12, "{checked} kernels");
}

#[test]
fn counts_are_what_is_executed() {
    check("smollm2-135m", Encoding::Q4_0, 0.15);
    check("smollm2-135m", Encoding::F16, 0.15);
}
