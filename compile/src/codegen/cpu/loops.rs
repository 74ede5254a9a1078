//! Counted loops.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::I64;
use cranelift_codegen::ir::{Block, BlockArg, InstBuilder, Value};

use super::emit::Emitter;

/// A counted loop: `i` runs from `start` in steps while it is at most `last`.
pub struct Count {
    pub start: Value,
    pub last: Value,
    pub step: u32,
    /// Known to run at least once.
    pub nonempty: bool,
}

impl Emitter<'_> {
    /// Writes a loop. Its body gets the counter and the carried values, and yields the values for the next iteration.
    /// Returns the counter where it ended, and the carried values.
    pub fn repeat(
        &mut self,
        count: Count,
        carried: &[Value],
        body: impl FnOnce(&mut Self, Value, &[Value]) -> Vec<Value>,
    ) -> (Value, Vec<Value>) {
        let (head, exit) = (self.b.create_block(), self.b.create_block());
        for block in [head, exit] {
            self.b.append_block_param(block, I64);
            for &value in carried {
                let ty = self.b.func.dfg.value_type(value);
                self.b.append_block_param(block, ty);
            }
        }
        let entering = block_args(count.start, carried);
        if count.nonempty {
            self.b.ins().jump(head, &entering);
        } else {
            self.branch_while(count.start, count.last, head, exit, &entering);
        }

        self.b.switch_to_block(head);
        let params = self.b.block_params(head).to_vec();
        let next_carried = body(self, params[0], &params[1..]);
        let next = self.b.ins().iadd_imm_s(params[0], count.step as i64);
        let again = block_args(next, &next_carried);
        self.branch_while(next, count.last, head, exit, &again);

        self.b.switch_to_block(exit);
        let params = self.b.block_params(exit);
        (params[0], params[1..].to_vec())
    }

    fn branch_while(&mut self, i: Value, last: Value, head: Block, exit: Block, args: &[BlockArg]) {
        let more = self.b.ins().icmp(IntCC::SignedLessThanOrEqual, i, last);
        self.b.ins().brif(more, head, args, exit, args);
    }
}

fn block_args(first: Value, rest: &[Value]) -> Vec<BlockArg> {
    std::iter::once(first)
        .chain(rest.iter().copied())
        .map(BlockArg::Value)
        .collect()
}
