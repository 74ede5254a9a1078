//! The engine in figures.

/// Gauges of this moment, and counters since the runner was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sequences that are being computed (gauge).
    pub running: u64,
    /// Sequences that wait (gauge).
    pub waiting: u64,
    /// Blocks of the smallest KV group.
    pub kv_blocks_total: u64,
    /// Blocks that hold nothing that is needed (gauge).
    pub kv_blocks_free: u64,
    /// Those among the free ones whose content may be used again (gauge).
    pub kv_blocks_cached: u64,
    /// Prompt tokens that were looked up in the prefix cache, and found.
    pub prefix_query_tokens: u64,
    pub prefix_hit_tokens: u64,
    /// Sequences that lost their blocks to others.
    pub preemptions: u64,
    /// Tokens of prompts that were computed.
    pub prompt_tokens: u64,
    pub generated_tokens: u64,
    /// Tokens that were guessed, and that turned out right.
    pub drafted_tokens: u64,
    pub accepted_tokens: u64,
    pub steps: u64,
}
