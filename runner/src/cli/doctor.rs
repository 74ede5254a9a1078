//! `fastrun doctor`: findings about this machine, for people and as JSON.

use std::io::{self, Write};

use fastrun::doctor::{Finding, Grade, Needs, Part, Runtimes, Tree, examine};
use fastrun::load::Loaded;
use serde_json::json;

use super::args::DoctorArgs;
use super::failure::Failure;

pub fn run(args: &DoctorArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let needs = match &args.bundle {
        // A bundle for another machine is just what is asked about.
        Some(path) => Some(Needs::of(&Loaded::open_to_look(path)?)),
        None => None,
    };
    let findings = examine(&Tree::here(), &Runtimes::here(), needs.as_ref());
    match args.json {
        true => writeln!(out, "{:#}", to_json(&findings))?,
        false => print(&findings, out)?,
    }
    let problems = findings.iter().filter(|f| f.grade == Grade::Problem);
    match problems.count() {
        0 => Ok(()),
        n => Err(Failure::Unfit(n)),
    }
}

fn part(part: Part) -> &'static str {
    match part {
        Part::Machine => "machine",
        Part::Amd => "AMD",
        Part::Nvidia => "NVIDIA",
    }
}

fn grade(grade: Grade) -> &'static str {
    match grade {
        Grade::Good => "ok",
        Grade::Advice => "advice",
        Grade::Problem => "PROBLEM",
    }
}

fn print(findings: &[Finding], out: &mut dyn Write) -> io::Result<()> {
    for f in findings {
        writeln!(out, "{:8} {:8} {}", part(f.part), grade(f.grade), f.what)?;
        for (name, text) in [("why", &f.why), ("do", &f.remedy)] {
            if !text.is_empty() {
                writeln!(out, "{:17} {name}: {text}", "")?;
            }
        }
    }
    Ok(())
}

fn to_json(findings: &[Finding]) -> serde_json::Value {
    let finding = |f: &Finding| {
        json!({
            "part": part(f.part).to_lowercase(),
            "grade": grade(f.grade).to_lowercase(),
            "what": f.what,
            "why": f.why,
            "remedy": f.remedy,
        })
    };
    json!({ "findings": findings.iter().map(finding).collect::<Vec<_>>() })
}
