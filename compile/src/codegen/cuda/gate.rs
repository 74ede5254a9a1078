//! The static gate: what the assembler reports of each kernel, and what no kernel may do.

use crate::error::Error;

/// Registers a thread has at most.
const MAX_REGISTERS: u32 = 255;

/// What the assembler says of one kernel.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    symbol: String,
    registers: u32,
    stack: u32,
    spills: u32,
}

/// Refuses code in which a kernel is missing, spills registers or keeps arrays in memory.
pub fn check(log: &str, symbols: &[String]) -> Result<(), Error> {
    let reports = parse(log);
    for symbol in symbols {
        let report = reports
            .iter()
            .find(|r| r.symbol == *symbol)
            .ok_or_else(|| Error::Bug(format!("the assembler says nothing of kernel {symbol}")))?;
        if report.registers == 0 || report.registers > MAX_REGISTERS {
            return Err(Error::Bug(format!(
                "kernel {symbol} has {} registers; expected 1 to {MAX_REGISTERS}",
                report.registers
            )));
        }
        if report.spills > 0 || report.stack > 0 {
            return Err(Error::Bug(format!(
                "kernel {symbol} spills {} bytes of registers and has {} bytes of stack; expected none of either",
                report.spills, report.stack
            )));
        }
    }
    Ok(())
}

/// Reads lines as
///
/// ```text
/// ptxas info    : Compiling entry function 'matmul_3' for 'sm_90a'
/// ptxas info    : Function properties for matmul_3
///     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
/// ptxas info    : Used 64 registers, used 1 barriers, 4228 bytes smem
/// ```
fn parse(log: &str) -> Vec<Report> {
    let mut reports: Vec<Report> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let symbol = rest.split('\'').next().unwrap_or_default().to_string();
            reports.push(Report {
                symbol,
                ..Report::default()
            });
            continue;
        }
        let Some(report) = reports.last_mut() else {
            continue;
        };
        if let Some((_, rest)) = line.split_once("Used ") {
            report.registers = number(rest);
        } else if line.contains("bytes stack frame") {
            let mut parts = line.split(',');
            report.stack = parts.next().map_or(0, number);
            report.spills = parts.map(number).sum();
        }
    }
    reports
}

/// The number that a text begins with; 0 where there is none.
fn number(text: &str) -> u32 {
    let digits: String = text
        .trim_start()
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_90a'
ptxas info    : Function properties for one
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 4228 bytes smem
ptxas info    : Compiling entry function 'two' for 'sm_90a'
ptxas info    : Function properties for two
    8 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
";

    #[test]
    fn spills_and_missing_kernels_are_refused_by_name() {
        assert!(check(LOG, &["one".into()]).is_ok());
        let text = check(LOG, &["one".into(), "two".into()])
            .unwrap_err()
            .to_string();
        assert!(text.contains("kernel two spills 28 bytes") && text.contains("8 bytes of stack"));
        let text = check(LOG, &["three".into()]).unwrap_err().to_string();
        assert!(text.contains("kernel three"), "{text}");
        let unused = LOG.replace("Used 64", "Used 0");
        assert!(check(&unused, &["one".into()]).is_err());
    }
}
