//! How far a long operation has come: told by the library, shown by the command line.

/// Hears of progress. All methods may be called from any thread.
pub trait Progress: Sync {
    /// A stage begins: what it does and how many bytes it has ahead.
    fn begin(&self, stage: &str, bytes: u64);
    /// So many bytes more are done.
    fn advance(&self, bytes: u64);
    /// Whether the user wants to stop; asked often.
    fn cancelled(&self) -> bool;
}

/// Shows nothing and never stops.
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn cancelled(&self) -> bool {
        false
    }
}
