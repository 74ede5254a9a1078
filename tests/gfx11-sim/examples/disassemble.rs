//! Prints the text of a code object's instructions, as `llvm-objdump -d` does: `cargo run --example disassemble FILE`.

use gfx11_sim::{CodeObject, Memory, disassemble};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: disassemble FILE")?;
    let object = CodeObject::load(&Memory::new(), &std::fs::read(path)?)?;
    let kernel = object.kernels().next().ok_or("no kernels")?;
    for inst in kernel.code().insts() {
        println!("{}", disassemble(inst));
    }
    Ok(())
}
