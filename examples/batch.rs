//! Many prompts at once: each line of standard input is continued, from as many threads as there are lines; the engine
//! computes them together. Results are in the order of the lines; the rate is of all of them.
//!
//!     cargo run --release -p fastrun --example batch -- model.fib 32 < prompts.txt

use std::time::Instant;

use fastrun::{Error, FinishReason, GenerateRequest, Runner, Update};

fn main() -> Result<(), Error> {
    let usage = || Error::User("usage: batch model.fib TOKENS < prompts.txt".into());
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(tokens)) = (arguments.next(), arguments.next()) else {
        return Err(usage());
    };
    let tokens: u32 = tokens.parse().map_err(|_| usage())?;
    let prompts: Vec<String> = std::io::stdin()
        .lines()
        .collect::<Result<_, _>>()
        .map_err(|e| Error::User(format!("standard input: {e}")))?;

    let runner = Runner::open(path)?;
    let start = Instant::now();
    let answers: Vec<Result<(String, u32), Error>> = std::thread::scope(|scope| {
        let threads: Vec<_> = prompts
            .iter()
            .map(|prompt| scope.spawn(|| answer(&runner, prompt, tokens)))
            .collect();
        let joined = threads.into_iter().map(|thread| {
            let panicked = |_| Err(Error::Bug("a thread panicked".into()));
            thread.join().unwrap_or_else(panicked)
        });
        joined.collect()
    });
    let seconds = start.elapsed().as_secs_f64();

    let mut total = 0;
    for (prompt, answer) in prompts.iter().zip(answers) {
        let (text, tokens) = answer?;
        println!("{prompt}{}", text.replace('\n', " "));
        total += tokens;
    }
    eprintln!(
        "{total} tokens in {seconds:.2} s: {:.0} tokens/s",
        f64::from(total) / seconds
    );
    Ok(())
}

/// The text that continues a prompt, and its tokens. The same prompt gives the same text, whatever else is in the batch.
fn answer(runner: &Runner, prompt: &str, tokens: u32) -> Result<(String, u32), Error> {
    let mut request = GenerateRequest::new(prompt);
    request.max_tokens = Some(tokens);
    request.sampling.seed = 1;
    let mut all = String::new();
    for update in runner.generate(request)? {
        match update {
            Update::Delta { text, .. } => all += &text,
            // Nobody asked for the prompt's probabilities.
            Update::Prompt { .. } => {}
            Update::Finished {
                reason: FinishReason::Error(text),
                ..
            } => return Err(Error::Bug(text)),
            Update::Finished { usage, .. } => return Ok((all, usage.completion_tokens)),
        }
    }
    Err(Error::Bug("the answer has no end".into()))
}
