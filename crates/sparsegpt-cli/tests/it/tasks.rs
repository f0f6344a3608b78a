//! Zero-shot tasks on the bundled model.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use crate::common::{entries, fail, model, run, succeed, text};
use serde_json::Value;

/// Files of three tasks, of three questions each.
fn data(folder: &Path) {
    let line = |content: [&str; 3]| content.join("\n") + "\n";
    let piqa = [
        r#"{"goal": "Find a bug", "sol1": "read the code", "sol2": "eat the code", "label": 0}"#,
        r#"{"goal": "Write a program", "sol1": "water it", "sol2": "type it in", "label": 1}"#,
        r#"{"goal": "Crash a system", "sol1": "halt it", "sol2": "paint it", "label": 0}"#,
    ];
    fs::create_dir_all(folder.join("piqa")).unwrap();
    fs::write(folder.join("piqa/valid.jsonl"), line(piqa)).unwrap();
    let lambada = [
        r#"{"text": "A hacker is a person"}"#,
        r#"{"text": "The system is down"}"#,
        r#"{"text": "This is a zebra"}"#,
    ];
    fs::write(folder.join("lambada_test.jsonl"), line(lambada)).unwrap();
    let boolq = [
        r#"{"passage": "Bugs bite.", "question": "do bugs bite", "answer": true}"#,
        r#"{"passage": "Bugs bite.", "question": "do bugs sing", "answer": false}"#,
        r#"{"passage": "Bugs bite.", "question": "do bugs run", "answer": false}"#,
    ];
    fs::write(folder.join("boolq_dev.jsonl"), line(boolq)).unwrap();
}

fn task<'r>(report: &'r Value, model: usize, name: &str) -> &'r Value {
    let tasks = report["models"][model]["tasks"].as_array().unwrap();
    tasks.iter().find(|task| task["task"] == name).unwrap()
}

#[test]
fn several_models_are_asked_the_same_questions() {
    let folder = tempfile::tempdir().unwrap();
    data(folder.path());
    let (model, out) = (model(), folder.path().join("out"));
    fs::create_dir(&out).unwrap();
    let pruned = out.join("pruned");
    let prune = [
        "--method",
        "magnitude",
        "--pattern",
        "90%",
        "--out",
        text(&pruned),
    ];
    succeed(&[&["prune", text(&model)][..], &prune].concat());
    let chart = out.join("chart.svg");
    let args = [
        "eval",
        text(&model),
        text(&pruned),
        "--tasks",
        "piqa,boolq,lambada",
    ];
    let more = ["--data", text(folder.path()), "--chart", text(&chart)];
    let args = [&args[..], &more].concat();
    let report = succeed(&[&args[..], &["--json"]].concat()).json();
    assert_eq!(report["recipe"], "harness");
    assert_eq!(report["models"][0]["name"], "jargon");
    assert_eq!(report["models"][1]["name"], "pruned");
    for at in 0..2 {
        for name in ["piqa", "boolq", "lambada"] {
            let found = task(&report, at, name);
            assert_eq!(found["questions"], 3);
            let decisions = found["decisions"].as_array().unwrap();
            let right = decisions
                .iter()
                .filter(|decision| decision["correct"] == true)
                .count();
            let acc = found["acc"]["value"].as_f64().unwrap();
            assert!((acc - right as f64 / 3.0).abs() < 1e-12);
            assert_eq!(found["acc_norm"].is_null(), name != "piqa");
            assert_eq!(found["perplexity"].is_null(), name != "lambada");
            assert_eq!(decisions[2]["place"], "line 3");
        }
        let scores = ["piqa", "boolq", "lambada"]
            .map(|name| task(&report, at, name)["acc"]["value"].as_f64().unwrap());
        let average = report["models"][at]["average"].as_f64().unwrap();
        assert!((average - scores.iter().sum::<f64>() / 3.0).abs() < 1e-12);
    }
    let word = |at| {
        task(&report, at, "lambada")["perplexity"]["value"]
            .as_f64()
            .unwrap()
    };
    assert!(word(1) > word(0), "{} {}", word(0), word(1));
    assert_ne!(
        task(&report, 0, "piqa")["decisions"],
        task(&report, 1, "piqa")["decisions"]
    );

    let table = succeed(&args).stdout;
    for word in ["piqa", "boolq", "lambada", "pruned", "average", "±"] {
        assert!(table.contains(word), "{word}: {table}");
    }
    let svg = fs::read_to_string(&chart).unwrap();
    for word in ["<svg", "piqa, jargon", "lambada, pruned"] {
        assert!(svg.contains(word), "{word}: {svg}");
    }
    assert_eq!(entries(&out), ["chart.svg", "pruned"]);
}

#[test]
fn limits_recipes_and_files_can_be_chosen() {
    let folder = tempfile::tempdir().unwrap();
    data(folder.path());
    let model = model();
    let args = [
        "eval",
        text(&model),
        "--data",
        text(folder.path()),
        "--json",
    ];
    let found = run(&[
        &args[..],
        &["--tasks", "all", "--limit", "2", "--recipe", "paper"],
    ]
    .concat());
    assert_eq!(found.code, Some(0), "{found:?}");
    // Which tasks the folder lacks is told.
    assert!(found.stderr.contains("storycloze"), "{found:?}");
    let report = found.json();
    assert_eq!(
        (&report["recipe"], &report["limit"]),
        (&"paper".into(), &2.into())
    );
    let names: Vec<&Value> = report["models"][0]["tasks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|task| &task["task"])
        .collect();
    assert_eq!(names, ["lambada", "piqa", "boolq"]);
    assert_eq!(task(&report, 0, "piqa")["questions"], 2);
    let quoted = |name: &str, key: &str| task(&report, 0, name)[key]["value"].as_f64().unwrap();
    let average =
        (quoted("lambada", "acc") + quoted("piqa", "acc_norm") + quoted("boolq", "acc")) / 3.0;
    assert!((report["models"][0]["average"].as_f64().unwrap() - average).abs() < 1e-12);

    let other = folder.path().join("other.jsonl");
    fs::write(
        &other,
        r#"{"goal": "g", "sol1": "a", "sol2": "b", "label": 1}"#,
    )
    .unwrap();
    let named = format!("piqa={}", text(&other));
    let report = succeed(&[&args[..], &["--tasks", "piqa", "--data", &named]].concat()).json();
    assert_eq!(task(&report, 0, "piqa")["questions"], 1);
    assert_eq!(task(&report, 0, "piqa")["file"], text(&other));
}

#[test]
fn mistakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    data(folder.path());
    let broken = folder.path().join("openbookqa_test.jsonl");
    fs::write(&broken, "{\"query\": \"q\", \"choices\": [\"a\", \"b\"]}\n").unwrap();
    let model = model();
    let folder = text(folder.path());
    for (more, code, named) in [
        (&["--tasks", "arc", "--data", folder][..], 2, "arc_easy"),
        (&["--tasks", "piqa,piqa", "--data", folder], 2, "twice"),
        (&["--tasks", "piqa"], 2, "--data"),
        (&["--data", folder], 2, "--tasks"),
        (
            &["--tasks", "piqa", "--text", "x", "--data", folder],
            2,
            "--text",
        ),
        (
            &["--tasks", "piqa", "--limit", "0", "--data", folder],
            2,
            "--limit",
        ),
        (
            &["--tasks", "piqa", "--recipe", "ptb", "--data", folder],
            2,
            "harness",
        ),
        (
            &["--tasks", "piqa", "--data", "no/such/folder"],
            3,
            "no/such/folder",
        ),
        (
            &["--tasks", "hellaswag", "--data", folder],
            3,
            "--data hellaswag=FILE",
        ),
        (
            &["--tasks", "openbookqa", "--data", folder],
            3,
            "openbookqa_test.jsonl: line 1: expected the field \"gold\"",
        ),
        (&["--text", "x", text(&model)], 2, "--tasks"),
        (&["--text", "x", "--recipe", "harness"], 2, "wikitext2"),
    ] {
        let args = [&["eval", text(&model)][..], more].concat();
        fail(&args, code, named);
    }
}

#[test]
fn a_pruned_model_is_compared_with_the_dense_one() {
    let folder = tempfile::tempdir().unwrap();
    let (model, text_file) = (model(), model().join("heldout.txt"));
    let of = |pattern: &str| {
        let pruned = folder.path().join(pattern);
        let prune = [
            "--method",
            "magnitude",
            "--pattern",
            pattern,
            "--out",
            text(&pruned),
        ];
        succeed(&[&["prune", text(&model)][..], &prune].concat());
        let args = [
            "eval",
            text(&pruned),
            "--text",
            text(&text_file),
            "--against",
            text(&model),
        ];
        let args = [&args[..], &["--limit", "4", "--json"]].concat();
        let against = succeed(&args).json()["against"].clone();
        assert_eq!(against["model"], text(&model));
        assert_eq!(
            (&against["chunks"], &against["predictions"]),
            (&4.into(), &1024.into())
        );
        ["same_choice", "divergence"].map(|key| against[key]["value"].as_f64().unwrap())
    };
    let (little, much) = (of("20%"), of("70%"));
    assert!(
        1.0 > little[0] && little[0] > much[0],
        "{little:?} {much:?}"
    );
    assert!(
        0.0 < little[1] && little[1] < much[1],
        "{little:?} {much:?}"
    );
    let broken = [
        "eval",
        text(&model),
        "--text",
        text(&text_file),
        "--against",
        "no/such/model",
    ];
    fail(&broken, 3, "no/such/model");
}
