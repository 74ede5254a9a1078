//! What a kernel executes, counted in its machine code: the input of the performance model.

/// Instructions of a warp (a wavefront), by the unit that they occupy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Count {
    /// All of them.
    pub instructions: f64,
    /// Cycles of the vector unit, but for matrix instructions.
    pub vector: f64,
    /// Matrix instructions.
    pub matrix: f64,
    /// Scalar instructions, which issue beside vector ones.
    pub scalar: f64,
    /// Bytes of shared memory that the lanes read and write.
    pub shared_bytes: f64,
    /// Loads of global memory, and their bytes.
    pub loads: f64,
    pub loaded_bytes: f64,
}

impl Count {
    /// Adds another's, so many times.
    pub fn add(&mut self, other: &Count, times: f64) {
        self.instructions += other.instructions * times;
        self.vector += other.vector * times;
        self.matrix += other.matrix * times;
        self.scalar += other.scalar * times;
        self.shared_bytes += other.shared_bytes * times;
        self.loads += other.loads * times;
        self.loaded_bytes += other.loaded_bytes * times;
    }
}

/// A kernel: its main loop, the loops that store results, and what is around them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    pub once: Count,
    /// A turn of the main loop.
    pub turn: Count,
    /// A turn of each loop that stores, behind the main one.
    pub store: Count,
    pub turns: Turns,
}

/// How often a warp goes through a kernel's loops.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Turns {
    /// There are none, or it isn't known: what is in them counts once.
    #[default]
    Once,
    /// A product's main loop, and those that store: of so many alternatives, each so often.
    Product {
        turns: u32,
        alternatives: u32,
        stores: f64,
    },
    Attention(Context),
}

/// How attention goes through the positions that a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// Positions of a turn of a block's main loop.
    pub turn: u32,
    /// Up to so many positions are one part, more are parts of so many at least, as far as the grid has parts in its third direction.
    pub alone: u32,
    pub share: u32,
}

impl Context {
    /// The parts of so many positions, of `most`.
    pub fn parts(&self, positions: f64, most: f64) -> f64 {
        match positions <= f64::from(self.alone) {
            true => 1.0,
            false => (positions / f64::from(self.share)).ceil().min(most),
        }
    }
}

impl Work {
    /// What a warp executes whose part of a context has so many positions.
    pub fn of_warp(&self, positions: f64) -> Count {
        let (turns, stores) = match self.turns {
            Turns::Once => (1.0, 1.0),
            Turns::Product {
                turns,
                alternatives,
                stores,
            } => (f64::from(turns), stores / f64::from(alternatives)),
            Turns::Attention(context) => ((positions / f64::from(context.turn)).ceil(), 1.0),
        };
        let mut all = self.once;
        all.add(&self.turn, turns);
        all.add(&self.store, stores);
        all
    }
}
