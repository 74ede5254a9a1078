//! `fastrun logits`: the logits after the last of some tokens.

use std::io::Write;

use fastrun::Error;
use serde_json::json;

use super::args::LogitsArgs;
use super::failure::Failure;
use super::forward::Forward;
use super::session::Session;

pub fn run(args: &LogitsArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let session = Session::open(&args.bundle, &args.device)?;
    check(&args.tokens, session.vocab(), session.limits().context)?;
    let mut forward = Forward::new(session.device()?, session.limits());
    let last = args.tokens.len() as u32 - 1;
    let mut pairs = Vec::new();
    forward.logits(&args.tokens, last..last + 1, |_, logits| {
        pairs = select(logits, args.top);
        Ok(())
    })?;
    if args.json {
        let pairs: Vec<_> = pairs.iter().map(|(id, x)| json!([id, x])).collect();
        writeln!(out, "{}", json!(pairs))?;
    } else {
        for (id, logit) in pairs {
            writeln!(out, "{id} {logit}")?;
        }
    }
    Ok(())
}

fn check(tokens: &[u32], vocab: u32, context: u32) -> Result<(), Error> {
    if let Some(id) = tokens.iter().find(|&&id| id >= vocab) {
        return Err(Error::User(format!(
            "--tokens: {id} is not in the vocabulary; ids are below {vocab}"
        )));
    }
    if tokens.len() > context as usize {
        return Err(Error::User(format!(
            "--tokens: {} tokens, but the bundle's context is {context}; give fewer, or compile the model with a larger \
             --ctx",
            tokens.len()
        )));
    }
    Ok(())
}

/// All logits by id, or the `top` largest, best first and lower ids first where they are equal.
fn select(logits: &[f32], top: Option<usize>) -> Vec<(usize, f32)> {
    let mut pairs: Vec<(usize, f32)> = logits.iter().copied().enumerate().collect();
    if let Some(top) = top {
        pairs.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        pairs.truncate(top);
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_come_first_and_ties_by_id() {
        let logits = [1.0, 3.0, -2.0, 3.0];
        assert_eq!(select(&logits, Some(3)), [(1, 3.0), (3, 3.0), (0, 1.0)]);
        assert_eq!(select(&logits, None)[2], (2, -2.0));
        assert_eq!(select(&logits, Some(9)).len(), 4);
    }

    #[test]
    fn ids_and_lengths_are_checked() {
        assert!(check(&[0, 9], 10, 2).is_ok());
        let text = check(&[0, 10], 10, 2).expect_err("outside").to_string();
        assert!(text.contains("10 is not in the vocabulary"), "{text}");
        let text = check(&[0; 3], 10, 2).expect_err("too long").to_string();
        assert!(
            text.contains("3 tokens") && text.contains("context is 2"),
            "{text}"
        );
    }
}
