//! An application that embeds the runner: a streamed chat, an answer that another thread stops, one with a time limit, and
//! two texts compared.
//!
//!     cargo run --release -p fastrun --example embed -- model.fib

use std::io::Write;
use std::time::{Duration, SystemTime};

use fastrun::chat::{ChatRequest, message};
use fastrun::runner::Embedding;
use fastrun::{Error, FinishReason, GenerateRequest, Generation, Runner, Update};

fn main() -> Result<(), Error> {
    let path = std::env::args_os()
        .nth(1)
        .ok_or_else(|| Error::User("usage: embed model.fib".into()))?;
    let runner = Runner::open(path)?;
    println!("{}: {}", runner.model().name, runner.model().architecture);
    chat(&runner)?;
    stopped_by_another_thread(&runner)?;
    within_a_time(&runner)?;
    compare(&runner)
}

/// Prints an answer as it comes.
fn print(answer: Generation) -> Option<FinishReason> {
    let mut end = None;
    for update in answer {
        match update {
            Update::Delta { text, .. } => {
                print!("{text}");
                // There is nobody to tell that it can't be written.
                let _ = std::io::stdout().flush();
            }
            // Nobody asked for the prompt's probabilities.
            Update::Prompt { .. } => {}
            Update::Finished {
                reason,
                usage,
                timings,
                ..
            } => {
                println!(
                    "\n[{reason}] {} tokens in {:.0?}",
                    usage.completion_tokens, timings.total
                );
                end = Some(reason);
            }
        }
    }
    end
}

fn chat(runner: &Runner) -> Result<(), Error> {
    let mut messages = vec![message("system", "Answer in one short sentence.")];
    for question in ["What is the capital of France?", "And of Italy?"] {
        messages.push(message("user", question));
        let mut request =
            GenerateRequest::new(ChatRequest::new(messages.clone(), SystemTime::now()));
        request.max_tokens = Some(48);
        request.sampling.temperature = 0.0;
        let (answer, _) = runner.generate(request)?.text();
        println!("{question} {answer}");
        messages.push(message("assistant", &answer));
    }
    Ok(())
}

fn stopped_by_another_thread(runner: &Runner) -> Result<(), Error> {
    let mut request = GenerateRequest::new("One, two, three,");
    request.ignore_eos = true;
    let answer = runner.generate(request)?;
    let canceller = answer.canceller();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        canceller.cancel();
    });
    let end = print(answer);
    assert_eq!(end, Some(FinishReason::Cancelled));
    thread
        .join()
        .map_err(|_| Error::Bug("the thread panicked".into()))
}

fn within_a_time(runner: &Runner) -> Result<(), Error> {
    let mut request = GenerateRequest::new("A very long story:");
    request.ignore_eos = true;
    request.timeout = Some(Duration::from_millis(200));
    let end = print(runner.generate(request)?);
    assert_eq!(end, Some(FinishReason::Timeout));
    Ok(())
}

fn compare(runner: &Runner) -> Result<(), Error> {
    let a = runner.embed("A cat sat on the mat.")?;
    let b = runner.embed("A dog lay on the rug.")?;
    let dot = |a: &Embedding, b: &Embedding| -> f32 {
        a.values.iter().zip(&b.values).map(|(x, y)| x * y).sum()
    };
    println!(
        "similarity: {:.3}, of {} values",
        dot(&a, &b),
        a.values.len()
    );
    Ok(())
}
