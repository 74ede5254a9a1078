//! Plans and bundles of a few launches, for comparing kernels by themselves.

use std::io::Write;
use std::path::Path;

use bundle_format::Writer;
use bundle_format::model::{Manifest, Model};
use bundle_format::plan::{
    Buffer, DType, Dim, Encoding, Input, KvGroup, Launch, Limits, Op, Output, Place, Plan, Role,
    Weight, WeightLayout,
};
use bundle_format::target::Target;
use bundle_format::write::Contents;
use fastc::driver::Options;
use fastc::lower::memory;
use kernels::pack::{self, fragment};
use kernels::quant;

/// A plan that is being made, with its weights' bytes.
pub struct Parts {
    pub plan: Plan,
    weights: Vec<Vec<u8>>,
    random: Random,
}

impl Parts {
    /// A plan with the inputs that every step has.
    pub fn new(limits: Limits, kv: Vec<KvGroup>) -> Parts {
        let groups = kv.len() as u32;
        let mut parts = Parts {
            plan: Plan {
                limits,
                world_size: 1,
                kv,
                buffers: vec![],
                arena_bytes: 0,
                weights: vec![],
                launches: vec![],
                sampling: None,
                stability: vec![],
            },
            weights: vec![],
            random: Random(0x9e37_79b9_7f4a_7c15),
        };
        let inputs = [Input::Tokens, Input::Positions, Input::Sequences];
        for input in inputs {
            parts.input(Dim::Tokens, input);
        }
        for group in 0..groups {
            parts.input(Dim::Tokens, Input::Slots(group));
        }
        parts.input(Dim::Rows, Input::Rows);
        parts
    }

    fn input(&mut self, extent: Dim, input: Input) {
        self.buffer(
            &format!("{input:?}"),
            DType::U32,
            extent,
            1,
            Role::Input(input),
        );
    }

    /// The buffer of an input.
    ///
    /// # Panics
    /// There is none.
    pub fn of(&self, input: Input) -> u32 {
        let role = Role::Input(input);
        let found = self.plan.buffers.iter().position(|b| b.place.role == role);
        found.expect("every plan has it") as u32
    }

    /// A buffer; its index.
    pub fn buffer(&mut self, name: &str, dtype: DType, extent: Dim, cols: u32, role: Role) -> u32 {
        let place = Place { offset: 0, role };
        self.plan.buffers.push(Buffer {
            name: name.into(),
            dtype,
            extent,
            cols,
            place,
        });
        self.plan.buffers.len() as u32 - 1
    }

    /// A buffer of the step's tokens.
    pub fn scratch(&mut self, name: &str, dtype: DType, cols: u32) -> u32 {
        self.buffer(name, dtype, Dim::Tokens, cols, Role::Scratch)
    }

    /// A matrix in fragments, of given row-major bytes.
    pub fn matrix(&mut self, name: &str, encoding: Encoding, cols: u32, bytes: &[u8]) -> u32 {
        let row = quant::row_bytes(encoding, cols.into()).expect("whole blocks");
        let rows: Vec<&[u8]> = bytes.chunks_exact(row as usize).collect();
        let tile = fragment::tile_bytes(encoding, cols.into()).expect("whole fragments");
        let mut packed = vec![0; tile as usize * rows.len().div_ceil(fragment::TILE)];
        let tiles = packed.chunks_exact_mut(tile as usize);
        for (rows, out) in rows.chunks(fragment::TILE).zip(tiles) {
            fragment::pack_tile(encoding, cols as usize, rows, out);
        }
        let shape = (rows.len() as u32, cols);
        self.weight(name, encoding, WeightLayout::Fragment16, shape, packed)
    }

    /// A matrix in fragments, of random numbers of mean 0 and such a spread.
    pub fn random_matrix(
        &mut self,
        name: &str,
        encoding: Encoding,
        (rows, cols): (u32, u32),
        spread: f32,
    ) -> u32 {
        let bytes = encoded(&mut self.random, encoding, rows, cols, spread);
        self.matrix(name, encoding, cols, &bytes)
    }

    /// A vector of f32.
    pub fn vector(&mut self, name: &str, x: &[f32]) -> u32 {
        let bytes = x.iter().flat_map(|x| x.to_le_bytes()).collect();
        let shape = (1, x.len() as u32);
        self.weight(name, Encoding::F32, WeightLayout::RowMajor, shape, bytes)
    }

    /// A vector of random numbers around 1.
    pub fn random_vector(&mut self, name: &str, len: u32) -> u32 {
        let x: Vec<f32> = (0..len).map(|_| 1.0 + 0.2 * self.random.normal()).collect();
        self.vector(name, &x)
    }

    fn weight(
        &mut self,
        name: &str,
        encoding: Encoding,
        layout: WeightLayout,
        (rows, cols): (u32, u32),
        bytes: Vec<u8>,
    ) -> u32 {
        let end = self.plan.weights.last().map_or(0, |w| w.offset + w.len);
        let len = pack::weight_len(encoding, layout, rows.into(), cols.into());
        let len = len.expect("whole blocks");
        assert_eq!(len, bytes.len() as u64, "{name}");
        self.plan.weights.push(Weight {
            name: name.into(),
            encoding,
            layout,
            rows,
            cols,
            offset: end.next_multiple_of(64),
            len,
            slices: vec![],
            interleave: 0,
            pairs: 0,
            shard: None,
        });
        self.weights.push(bytes);
        self.plan.weights.len() as u32 - 1
    }

    /// A launch behind those that are there.
    pub fn launch(&mut self, name: &str, op: Op) {
        self.plan.launches.push(Launch {
            name: name.into(),
            deps: vec![],
            op,
            variants: vec![],
        });
    }

    /// Writes the bundle for a target, whose rows of logits have `vocab` columns.
    ///
    /// # Panics
    /// It can't be compiled, or is no valid one.
    pub fn write(mut self, name: &str, options: &Options, vocab: u32, path: &Path) {
        memory::place(&mut self.plan).unwrap_or_else(|e| panic!("{name}: {e}"));
        memory::depend(&mut self.plan);
        // Nobody draws from these logits.
        let options = &Options {
            draws: false,
            ..options.clone()
        };
        let code = fastc::codegen::generate(&mut self.plan, options);
        let code = code.unwrap_or_else(|e| panic!("{name}: {e}")).bytes;
        let hidden = Role::Output(Output::Hidden);
        let hidden = self.plan.buffers.iter().find(|b| b.place.role == hidden);
        let embedding = hidden.map_or(vocab, |b| b.cols);
        let manifest = manifest(options.target, vocab, embedding, self.plan.limits.context);
        let contents = Contents {
            manifest: &manifest,
            plan: &self.plan,
            code: &code,
            tokenizer: b"none",
        };
        let file = std::fs::File::create(path).expect("the folder is writable");
        let mut writer = Writer::new(file, contents).expect("the plan is valid");
        for (i, bytes) in self.weights.iter().enumerate() {
            writer.start_weight(i).expect("weights come in order");
            writer.write_all(bytes).expect("the disk has room");
        }
        writer.finish().expect("the disk has room");
    }
}

fn manifest(target: Target, vocab: u32, embedding: u32, context: u32) -> Manifest {
    Manifest {
        compiler: "a test".into(),
        toolchain: vec![],
        zstd: bundle_format::codec::zstd_version().into(),
        source_hash: [0; 32],
        target,
        features: vec![],
        kernel_abi: kernels::abi::VERSION,
        options: vec![],
        model: Model {
            arch: "launches".into(),
            name: String::new(),
            quantisation: String::new(),
            parameters: 0,
            layers: 1,
            embedding,
            vocab,
            trained_context: context,
        },
    }
}

/// Row-major bytes of random numbers.
pub fn encoded(
    random: &mut Random,
    encoding: Encoding,
    rows: u32,
    cols: u32,
    spread: f32,
) -> Vec<u8> {
    let (rows, cols) = (rows as usize, cols as usize);
    let values: Vec<f32> = (0..rows * cols).map(|_| random.normal() * spread).collect();
    let row = quant::row_bytes(encoding, cols as u64).expect("whole blocks");
    let mut bytes = vec![0; rows * row as usize];
    fastc::synth::encode::encode(encoding, &values, &mut bytes);
    bytes
}

/// xorshift64*
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 24
    }

    /// A number of mean 0 and variance 1.
    pub fn normal(&mut self) -> f32 {
        let part = |x: u64| (x & 0xffff) as f32 / 65536.0;
        (0..12).map(|_| part(self.next())).sum::<f32>() - 6.0
    }
}
