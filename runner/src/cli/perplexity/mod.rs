//! `fastrun perplexity`: how well a model foresees a text, by llama.cpp's protocol, so that figures compare.
//!
//! The text's ids are cut into windows of `--ctx`; what doesn't fill a window is left out. Each window is a sequence of its
//! own, and its first id is replaced by BOS where the model adds one. Position p of a window is scored by the probability
//! of its id p + 1, for p from ctx / 2 to ctx - 2: every scored token has at least half a window before it.

mod reference;
mod score;

use std::io::Write;
use std::ops::Range;

use fastrun::Error;

use super::args::PerplexityArgs;
use super::failure::{Failure, cannot_read};
use super::forward::Forward;
use super::progress;
use super::session::Session;
use reference::Record;
use score::{Distribution, Divergence, Perplexity};

/// The positions of a window that are scored.
fn scored(ctx: u32) -> Range<u32> {
    ctx / 2..ctx - 1
}

pub fn run(args: &PerplexityArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let session = Session::open(&args.bundle, &args.device)?;
    let text = std::fs::read_to_string(&args.file).map_err(|e| cannot_read(&args.file, &e))?;
    let ids = session.encode_text(&text)?;
    let mut windows = windows(&ids, args.ctx, session.bos()?);
    check(args, &session, ids.len(), windows.len())?;

    let oracle = match &args.reference {
        None => None,
        Some(path) => {
            let bytes = std::fs::read(path).map_err(|e| cannot_read(path, &e))?;
            let name = path.display().to_string();
            let per_window = scored(args.ctx).len();
            let records = reference::parse(&name, &bytes, per_window, session.vocab())?;
            check_targets(&name, &records, &windows, args.ctx)?;
            windows.truncate(records.len() / per_window);
            Some(records)
        }
    };

    let mut forward = Forward::new(session.device()?, session.limits());
    let mut scores = Scores::new(oracle.as_deref());
    let bar = progress::steps("perplexity", windows.len() as u64);
    for window in &windows {
        forward.logits(window, scored(args.ctx), |position, logits| {
            scores.add(window[position as usize + 1], logits)
        })?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    scores.print(out)?;
    Ok(())
}

/// The text's windows of `ctx` ids.
fn windows(ids: &[u32], ctx: u32, bos: Option<u32>) -> Vec<Vec<u32>> {
    let window = |ids: &[u32]| {
        let mut window = ids.to_vec();
        if let Some(bos) = bos {
            window[0] = bos;
        }
        window
    };
    ids.chunks_exact(ctx as usize).map(window).collect()
}

fn check(
    args: &PerplexityArgs,
    session: &Session,
    ids: usize,
    windows: usize,
) -> Result<(), Error> {
    let (ctx, context) = (args.ctx, session.limits().context);
    if ctx > context {
        return Err(Error::User(format!(
            "--ctx {ctx} is beyond the bundle's context of {context}; use a smaller --ctx, or compile the model with a \
             larger one"
        )));
    }
    if windows == 0 {
        return Err(Error::User(format!(
            "{} has {ids} tokens, and a window takes {ctx}; use a longer text or a smaller --ctx",
            args.file.display()
        )));
    }
    Ok(())
}

/// The oracle's records are about the first windows of this very text.
fn check_targets(
    name: &str,
    records: &[Record],
    windows: &[Vec<u32>],
    ctx: u32,
) -> Result<(), Error> {
    let targets = windows
        .iter()
        .flat_map(|w| scored(ctx).map(|p| w[p as usize + 1]));
    let mut targets = targets.fuse();
    for (i, record) in records.iter().enumerate() {
        match targets.next() {
            Some(id) if id == record.target => {}
            Some(id) => {
                return Err(Error::User(format!(
                    "{name}: record {i} is about token {}, where the text has {id}; it was made from another text, with \
                     another tokenizer or another --ctx",
                    record.target
                )));
            }
            None => {
                return Err(Error::User(format!(
                    "{name} has {} records, but the text has only {i} scored positions; it was made from a longer text",
                    records.len()
                )));
            }
        }
    }
    Ok(())
}

/// Figures over the positions so far.
struct Scores<'a> {
    perplexity: Perplexity,
    /// The oracle's records that were not reached yet, and how far we are from those before.
    oracle: Option<(std::slice::Iter<'a, Record>, Perplexity, Divergence)>,
}

impl<'a> Scores<'a> {
    fn new(oracle: Option<&'a [Record]>) -> Scores<'a> {
        Scores {
            perplexity: Perplexity::default(),
            oracle: oracle
                .map(|records| (records.iter(), Perplexity::default(), Divergence::default())),
        }
    }

    fn add(&mut self, target: u32, logits: &[f32]) -> Result<(), Error> {
        let distribution = Distribution::new(logits)
            .ok_or_else(|| Error::Bug("the device yielded a logit that is not finite".into()))?;
        self.perplexity.add(distribution.log_prob(target));
        if let Some((records, perplexity, divergence)) = &mut self.oracle
            && let Some(record) = records.next()
        {
            perplexity.add(record.log_prob as f64);
            divergence.add(record, &distribution);
        }
        Ok(())
    }

    fn print(&self, out: &mut dyn Write) -> std::io::Result<()> {
        if let Some((_, perplexity, divergence)) = &self.oracle {
            writeln!(out, "reference perplexity: {:.4}", perplexity.value())?;
            writeln!(
                out,
                "kl: {:.5}  same-top: {:.1}%",
                divergence.kl(),
                divergence.same_top()
            )?;
        }
        writeln!(
            out,
            "perplexity: {:.4} +/- {:.5}",
            self.perplexity.value(),
            self.perplexity.error()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(target: u32, log_prob: f32) -> Record {
        Record {
            target,
            log_prob,
            top: vec![(0, 0.5f32.ln()), (1, 0.25f32.ln())],
        }
    }

    #[test]
    fn windows_are_whole_and_start_with_bos() {
        let ids: Vec<u32> = (10..20).collect();
        let cut = windows(&ids, 4, Some(1));
        assert_eq!(cut, [vec![1, 11, 12, 13], vec![1, 15, 16, 17]]);
        assert_eq!(windows(&ids, 5, None)[1], [15, 16, 17, 18, 19]);
        assert!(windows(&ids, 11, None).is_empty());
    }

    #[test]
    fn the_second_half_is_scored() {
        assert_eq!(scored(512), 256..511);
        assert_eq!(scored(4), 2..3);
    }

    #[test]
    fn records_of_another_text_are_refused() {
        let windows = vec![vec![9, 1, 2, 3], vec![9, 4, 5, 6]];
        let good = [record(3, -1.0), record(6, -1.0)];
        assert!(check_targets("w", &good, &windows, 4).is_ok());
        assert!(check_targets("w", &good[..1], &windows, 4).is_ok());
        let text = |records: &[Record]| match check_targets("w", records, &windows, 4) {
            Err(Error::User(text)) => text,
            other => panic!("{other:?} instead of a user error"),
        };
        assert!(
            text(&[record(3, -1.0), record(7, -1.0)])
                .contains("record 1 is about token 7, where the text has 6")
        );
        let long = [record(3, -1.0), record(6, -1.0), record(8, -1.0)];
        assert!(text(&long).contains("3 records, but the text has only 2"));
    }

    #[test]
    fn the_last_lines_are_kl_and_perplexity() {
        let records = [record(0, 0.5f32.ln())];
        let mut scores = Scores::new(Some(&records));
        let row = [0.5f32.ln(), 0.25f32.ln(), 0.25f32.ln()];
        scores.add(1, &row).expect("finite");
        let mut out = Vec::new();
        scores.print(&mut out).expect("memory");
        assert_eq!(
            String::from_utf8_lossy(&out),
            "reference perplexity: 2.0000\nkl: 0.00000  same-top: 100.0%\nperplexity: 4.0000 +/- 0.00000\n"
        );
        let error = scores.add(1, &[f32::NAN]).expect_err("not a number");
        assert!(error.to_string().contains("not finite"));
    }
}
