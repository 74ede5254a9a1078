//! `fastc explain --html`: one page with the whole story.

use bundle_format::plan::Encoding;
use bundle_format::target::Target;
use fastc::driver::{self, Options};
use fastc::explain;
use fastc::gguf::Gguf;
use fastc::passes::PASSES;
use fastc::progress::Silent;
use fastc::synth;
use serde_json::Value;

/// A model of three layers, of which two are alike: the first has another input.
fn model(folder: &std::path::Path) -> Vec<u8> {
    let path = folder.join("tiny.gguf");
    let options = synth::Options {
        shape: synth::Shape::named("tiny").unwrap(),
        encoding: Encoding::Q4_1,
        layers: Some(3),
        vocab: None,
        seed: 1,
        output: &path,
    };
    synth::synth(&options, &Silent).unwrap();
    std::fs::read(path).unwrap()
}

/// The data of a page.
fn data(page: &str) -> Value {
    let (_, rest) = page.split_once(r#"type="application/json">"#).unwrap();
    let (json, _) = rest.split_once("</script>").unwrap();
    serde_json::from_str(json).unwrap()
}

#[test]
fn the_page_tells_the_whole_story() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = model(folder.path());
    let gguf = Gguf::parse(&bytes).unwrap();
    let mut options = Options::new(Target::X86_64V3);
    options.passes.disabled = vec!["fuse-swiglu".to_string()];
    let compiled = driver::compile_graph(&gguf, &options, |_| {}, |_| {}).unwrap();
    let plan = &compiled.plan;
    let page = explain::page(&gguf, &options, "tiny").unwrap();
    let data = data(&page);

    let stages = data["stages"].as_array().unwrap();
    let names: Vec<&str> = stages.iter().map(|s| s["name"].as_str().unwrap()).collect();
    let passes = PASSES.iter().map(|p| p.name);
    assert_eq!(
        names,
        ["imported"].into_iter().chain(passes).collect::<Vec<_>>()
    );
    for (stage, before) in stages[1..].iter().zip(stages) {
        assert_eq!(stage["before"], before["after"]);
        assert_eq!(stage["enabled"], stage["name"] != "fuse-swiglu");
        let counted = |change: &str| stage["counts"][change].as_i64().unwrap_or(0);
        let grown = stage["after"].as_i64().unwrap() - stage["before"].as_i64().unwrap();
        assert_eq!(
            counted("added") - counted("removed"),
            grown,
            "{}",
            stage["name"]
        );
    }

    let drawn: Vec<&str> = data["memory"]["launches"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_str().unwrap())
        .collect();
    let launches: Vec<&str> = plan.launches.iter().map(|l| l.name.as_str()).collect();
    assert_eq!(drawn, launches);
    assert_eq!(
        data["memory"]["drawn"].as_array().unwrap().len(),
        plan.buffers.len()
    );

    // Every launch, weight and buffer is said once for each layer, and their costs add up.
    let rows = |list: &Value| -> usize {
        let sections = list.as_array().unwrap().iter();
        sections
            .map(|s| {
                s["at"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|at| at.as_array().unwrap().len())
                    .sum::<usize>()
            })
            .sum()
    };
    assert_eq!(rows(&data["launches"]), plan.launches.len());
    assert_eq!(rows(&data["weights"]), plan.weights.len());
    assert_eq!(rows(&data["memory"]["listed"]), plan.buffers.len());
    for (step, total) in data["steps"].as_array().unwrap().iter().enumerate() {
        for kind in 0..4 {
            let mut sum = 0;
            for section in data["launches"].as_array().unwrap() {
                let each: u64 = section["rows"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|r| r["costs"][step][kind].as_u64().unwrap())
                    .sum();
                sum += each * section["at"].as_array().unwrap().len() as u64;
            }
            assert_eq!(total["total"][kind].as_u64(), Some(sum));
        }
    }
    let reasons = plan
        .launches
        .iter()
        .flat_map(|l| &l.variants)
        .map(|v| &v.reason);
    for reason in reasons {
        assert!(page.contains(reason.as_str()), "{reason}");
    }
}

#[test]
fn names_are_escaped_and_nothing_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = model(folder.path());
    let gguf = Gguf::parse(&bytes).unwrap();
    let name = "</script><b>";
    let page = explain::page(&gguf, &Options::new(Target::X86_64V3), name).unwrap();
    assert!(!page.contains(name));
    assert_eq!(data(&page)["model"], name);
    for address in ["http:", "https:", "src=", "url("] {
        assert!(!page.contains(address), "{address}");
    }
}

#[test]
fn a_page_appears_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("page.html");
    explain::write_page("one", &path).unwrap();
    explain::write_page("two", &path).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    let missing = folder.path().join("missing").join("page.html");
    let error = explain::write_page("page", &missing)
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("--html: "), "{error}");
    assert!(error.contains(&missing.display().to_string()), "{error}");
    let error = explain::write_page("page", folder.path())
        .unwrap_err()
        .to_string();
    assert!(error.ends_with("is a folder; name a file"), "{error}");
}
