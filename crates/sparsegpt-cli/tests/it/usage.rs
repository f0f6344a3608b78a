//! Wrong usage and wrong files: exit codes and messages.

#![allow(clippy::unwrap_used)]

use std::fs;

use crate::common::{
    Tensor, calibration, command, entries, fail, load, model, run, save, succeed, text,
};

#[test]
fn help_tells_the_exit_codes() {
    let help = succeed(&["--help"]).stdout;
    for code in ["0 ", "1 ", "2 ", "3 ", "4 ", "130 "] {
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(code)),
            "{code}: {help}"
        );
    }
    assert!(
        succeed(&["--version"])
            .stdout
            .contains(env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn flags_that_make_no_sense_are_usage_errors() {
    let (model, text_file) = (model(), calibration());
    let (model, text_file) = (text(&model), text(&text_file));
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let out = text(&out);
    let prune = |more: &[&str], named: &str| {
        let mut args = vec!["prune", model, "--out", out, "--calibration", text_file];
        args.extend(more);
        fail(&args, 2, named);
    };
    fail(&["prone"], 2, "prone");
    assert_eq!(run(&[]).code, Some(2));
    prune(&[], "--bits");
    prune(&["--pattern", "50"], "50%");
    prune(&["--pattern", "5:4"], "5:4");
    prune(&["--pattern", "150%"], "from 0% to 100%, found \"150%\"");
    prune(&["--pattern", "row:NaN%"], "from 0% to 100%");
    prune(&["--pattern", "2:7"], "groups of 7 columns");
    prune(&["--bits", "9"], "2 to 8");
    prune(&["--pattern", "50%", "--mse"], "--bits");
    prune(
        &["--bits", "4", "--group-size", "32", "--per-tensor"],
        "--per-tensor",
    );
    prune(&["--bits", "4", "--static-groups"], "--group-size");
    prune(
        &["--pattern", "50%", "--method", "wanda", "--damping", "0.1"],
        "--damping",
    );
    prune(&["--pattern", "50%", "--damping", "-1"], "damping");
    prune(&["--pattern", "50%", "--damping=-1"], "damping");
    for damping in ["1.01", "1e30", "inf", "NaN"] {
        prune(&["--pattern", "50%", "--damping", damping], "from 0 to 1");
    }
    prune(&["--pattern", "50%", "--method", "better"], "better");
    prune(&["--pattern", "50%", "--block-size", "0"], "--block-size");
    prune(
        &["--pattern", "50%", "--skip", "no_such_layer"],
        "no_such_layer",
    );
    prune(&["--pattern", "50%", "--first", "9"], "dense");
    prune(&["--pattern", "50%", "--rule", "mlp"], "--rule");
    prune(
        &["--pattern", "50%", "--pattern-list", "50%"],
        "--pattern-list",
    );
    prune(&["--pattern-list", "50%,60%"], "one for each layer");
    prune(&["--pattern", "50%", "--dtype", "int8"], "dtype");
    prune(&["--pattern", "50%", "--samples", "0"], "samples");
    prune(&["--pattern", "50%", "--samples", "99999999999"], "samples");
    prune(&["--pattern", "50%", "--sequence-length", "512"], "256");
    prune(
        &["--pattern", "50%", "--calibration-mode", "books"],
        "books",
    );
    prune(&["--pattern", "50%", "--threads", "99999"], "--threads");
    fail(
        &["prune", model, "--pattern", "50%", "--out", out],
        2,
        "--calibration",
    );
    fail(
        &[
            "prune",
            model,
            "--pattern",
            "50%",
            "--calibration",
            text_file,
        ],
        2,
        "--out",
    );
    assert!(
        entries(folder.path()).is_empty(),
        "{:?}",
        entries(folder.path())
    );
}

#[test]
fn broken_files_are_input_errors() {
    let folder = tempfile::tempdir().unwrap();
    let model_folder = model();
    let text_file = calibration();
    let short = folder.path().join("short.txt");
    fs::write(&short, "too short").unwrap();
    let out = folder.path().join("out");
    let prune = |model: &str, calibration: &str, named: &str| {
        let args = [
            "prune",
            model,
            "--pattern",
            "50%",
            "--out",
            text(&out),
            "--calibration",
            calibration,
        ];
        fail(&args, 3, named);
    };
    prune("no/such/model", text(&text_file), "no/such/model");
    prune(text(folder.path()), text(&text_file), "config.json");
    prune(text(&text_file), text(&text_file), "calibration.txt");
    let weights = model_folder.join("model.safetensors");
    prune(text(&weights), text(&text_file), "give the folder");
    prune(text(&model_folder), "no/such/text", "no/such/text");
    prune(text(&model_folder), text(&short), "short.txt");

    let broken = folder.path().join("broken");
    fs::create_dir(&broken).unwrap();
    fs::copy(model_folder.join("config.json"), broken.join("config.json")).unwrap();
    let weights = fs::read(model_folder.join("model.safetensors")).unwrap();
    fs::write(
        broken.join("model.safetensors"),
        &weights[..weights.len() / 2],
    )
    .unwrap();
    prune(text(&broken), text(&text_file), "model.safetensors");
    for command in [
        vec!["inspect"],
        vec!["eval", "--text", text(&text_file)],
        vec!["generate", "--prompt", "x"],
    ] {
        let mut args = command;
        args.insert(1, text(&broken));
        fail(&args, 3, "model.safetensors");
    }
    let run = fail(
        &["eval", text(&model_folder), "--text", text(&short)],
        3,
        "at least one chunk",
    );
    assert!(run.stderr.contains(text(&short)), "{run:?}");

    // What is wrong inside a model is told with the model's folder.
    let config = fs::read_to_string(model_folder.join("config.json")).unwrap();
    fs::write(
        broken.join("config.json"),
        config.replace("hidden_size", "hiding_size"),
    )
    .unwrap();
    prune(text(&broken), text(&text_file), text(&broken));

    let foreign = folder.path().join("foreign.safetensors");
    save(
        &foreign,
        &[("tokens", Tensor::i32(&[2, 32], &[70_000; 64]))],
    );
    prune(text(&model_folder), text(&foreign), "vocabulary");
    // Longer than the model's context, which no flag of this run is to blame for.
    save(&foreign, &[("tokens", Tensor::i32(&[1, 257], &[1; 257]))]);
    prune(text(&model_folder), text(&foreign), "foreign.safetensors");
    assert_eq!(
        entries(folder.path()),
        ["broken", "foreign.safetensors", "short.txt"]
    );
}

#[test]
fn an_output_that_is_not_empty_needs_force() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("precious.txt"), "keep me").unwrap();
    let model = model();
    let mut args = vec![
        "prune",
        text(&model),
        "--pattern",
        "50%",
        "--method",
        "magnitude",
        "--out",
        text(&out),
    ];
    fail(&args, 2, "--force");
    assert_eq!(entries(&out), ["precious.txt"]);
    args.push("--force");
    succeed(&args);
    assert!(out.join("model.safetensors").is_file());
    assert!(!out.join("precious.txt").exists());
    assert_eq!(entries(folder.path()), ["out"]);
}

#[test]
fn a_dry_run_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let (model, calibration) = (model(), calibration());
    let mut args = vec![
        "prune",
        text(&model),
        "--calibration",
        text(&calibration),
        "--pattern",
        "2:4",
        "--rule",
        "*down_proj=50%",
        "--skip",
        "block:0",
        "--bits",
        "4",
        "--out",
        text(&out),
        "--dry-run",
    ];
    let plan = succeed(&args).stdout;
    for part in [
        "model.layers.4.mlp.down_proj",
        "192 x 512",
        "skipped",
        "4 bit",
        "peak memory",
    ] {
        assert!(plan.contains(part), "{part}: {plan}");
    }
    args.push("--json");
    let plan = succeed(&args).json();
    let layers = plan["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 5 * 7);
    assert_eq!(layers[0]["pattern"], serde_json::Value::Null);
    assert_eq!(layers[7]["pattern"], "2:4");
    assert_eq!(layers[13]["pattern"], "50%");
    assert_eq!(
        (&plan["sequences"], &plan["sequence_length"]),
        (&128.into(), &256.into())
    );
    assert!(plan["seconds"].as_f64().unwrap() > 0.0);
    // 128 x 256 hidden states of 192 f32 are 25 MB.
    let bytes = plan["peak_memory_bytes"].as_f64().unwrap();
    assert!((25e6..200e6).contains(&bytes), "{bytes}");
    assert!(entries(folder.path()).is_empty());
}

#[test]
fn a_dry_run_looks_at_the_calibration_file() {
    let folder = tempfile::tempdir().unwrap();
    let model = model();
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let dry_run = |calibration: &std::path::Path| {
        let mut args = vec!["prune", text(&model), "--pattern", "50%", "--dry-run"];
        args.extend(["--calibration", text(calibration)]);
        run(&args)
    };
    let tokens = folder.path().join("foreign.safetensors");
    save(&tokens, &[("tokens", Tensor::i32(&[2, 32], &[70_000; 64]))]);
    for (path, named) in [
        (folder.path().join("absent.txt"), "cannot open"),
        (folder.path().to_path_buf(), "directory"),
        (file("empty.txt", b""), "empty"),
        (file("packed.txt", &[0x1f, 0x8b, 8, 0]), "gzip"),
        (file("binary", &[0xff, 0xfe, 0, 1]), "UTF-8"),
        (file("keys.jsonl", b"{\"body\": \"x\"}\n"), "\"text\""),
        (file("broken.parquet", b"PAR1, and no more"), "parquet"),
        (file("broken.safetensors", b"none"), "safetensors"),
        (tokens, "vocabulary"),
    ] {
        let run = dry_run(&path);
        assert_eq!(run.code, Some(3), "{run:?}");
        assert!(run.stderr.contains(text(&path)), "{run:?}");
        assert!(run.stderr.contains(named), "{named}: {run:?}");
        assert!(run.stdout.is_empty(), "{run:?}");
    }
    let without_tokenizer = folder.path().join("model");
    fs::create_dir(&without_tokenizer).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(model.join(name), without_tokenizer.join(name)).unwrap();
    }
    let calibration_file = calibration();
    let mut args = vec!["prune", text(&without_tokenizer), "--pattern", "50%"];
    args.extend(["--calibration", text(&calibration_file), "--dry-run"]);
    fail(&args, 3, "tokenizer.json");
    // Whether a text is long enough is found when it is tokenized.
    let run = dry_run(&file("short.txt", b"too short"));
    assert_eq!(run.code, Some(0), "{run:?}");
    let calibration = calibration();
    let mut args = vec!["prune", text(&model), "--pattern", "50%", "--dry-run"];
    args.extend(["--calibration", text(&calibration)]);
    for (flag, named) in [("--samples", "samples"), ("--sequence-length", "length")] {
        fail(&[&args[..], &[flag, "0"]].concat(), 2, named);
    }
}

#[test]
fn a_gguf_file_cut_off_is_one_line_of_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.gguf");
    let header = [3_u64 << 32, 272, 33].map(u64::to_le_bytes).concat();
    // Magic, version, numbers of tensors and of keys, and no more.
    fs::write(&path, [b"GGUF", &header[4..]].concat()).unwrap();
    let output = command(&["inspect", text(&path)])
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains("cut.gguf: not a whole GGUF file"), "{told}");
}

#[test]
fn long_lists_of_tensors_are_cut() {
    let folder = tempfile::tempdir().unwrap();
    let model = model();
    let weights = model.join("model.safetensors");
    let out = folder.path().join("out");
    let layer = ["layer", text(&weights), text(&out), "--pattern", "50%"];
    let run = fail(&layer, 3, "the file has: model.embed_tokens.weight, ");
    assert!(run.stderr.len() < 1000, "{run:?}");
    // Sorted, so that it is the same list each time.
    assert_eq!(run.stderr, fail(&layer, 3, "and 35 more").stderr);
    let mut prune = vec![
        "prune",
        text(&model),
        "--pattern",
        "50%",
        "--out",
        text(&out),
    ];
    prune.extend(["--calibration", text(&weights)]);
    let run = fail(&prune, 3, "and 35 more");
    assert!(run.stderr.len() < 1000, "{run:?}");
}

#[test]
fn a_prompt_longer_than_the_context_is_named() {
    let (model, prompt) = (model(), "word ".repeat(300));
    let args = ["generate", text(&model), "--prompt", &prompt];
    fail(&args, 2, "prompt: expected at most 256 tokens");
}

#[test]
fn a_model_that_only_inspect_takes_is_told_to_be_one() {
    let folder = tempfile::tempdir().unwrap();
    let foreign = folder.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    let config = fs::read_to_string(model().join("config.json")).unwrap();
    let config = config.replace("\"llama\"", "\"mamba\"");
    fs::write(foreign.join("config.json"), config).unwrap();
    fs::copy(
        model().join("model.safetensors"),
        foreign.join("model.safetensors"),
    )
    .unwrap();
    let remark = "prune, eval, generate and logits refuse this model";
    let told = succeed(&["inspect", text(&foreign)]).stdout;
    let lines: Vec<_> = told.lines().filter(|line| line.contains(remark)).collect();
    assert!(
        lines.len() == 1 && lines[0].contains("model_type") && lines[0].contains("mamba"),
        "{told}"
    );
    let report = succeed(&["inspect", text(&foreign), "--json"]).json();
    assert!(report["refused"].as_str().unwrap().contains("model_type"));
    let model = model();
    assert!(!succeed(&["inspect", text(&model)]).stdout.contains(remark));
    let report = succeed(&["inspect", text(&model), "--json"]).json();
    assert!(report.get("refused").is_none());
}

#[test]
fn a_quiet_run_reports_the_sequence_length_it_chose() {
    let (model, text_file) = (model(), calibration());
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut args = vec!["-q", "prune", text(&model), "--out", text(&out)];
    args.extend(["--calibration", text(&text_file), "--samples", "1"]);
    args.extend(["--pattern", "50%", "--only", "layer:0"]);
    let run = succeed(&args);
    assert!(run.stderr.is_empty(), "{run:?}");
    assert!(run.stdout.contains("1 x 256 tokens"), "{run:?}");
    let report = fs::read(out.join("sparsegpt_report.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["calibration"]["sequence_length"], 256);
    assert!(report["settings"].get("sequence-length").is_none());

    let text_file = text(&text_file);
    let eval = [
        "-q",
        "eval",
        text(&model),
        "--text",
        text_file,
        "--limit",
        "1",
    ];
    assert!(succeed(&eval).stdout.contains("chunks of 256 tokens"));
}

#[test]
fn bench_measures_a_layer() {
    let args = [
        "--json",
        "--threads",
        "1",
        "bench",
        "--layer",
        "48x130",
        "--seconds",
        "0",
    ];
    let report = succeed(
        &[
            &args[..],
            &["--tokens", "9", "--pattern", "2:4", "--dtype", "bf16"],
        ]
        .concat(),
    )
    .json();
    // 2 columns of 130 are no whole group.
    let density = (64.0 + 2.0) / 130.0;
    assert_eq!(report["density"].as_f64(), Some(density));
    assert_eq!(report["dense_bytes"], 48 * 130 * 2);
    for seconds in ["dense_seconds", "sparse_seconds", "floor_seconds"] {
        assert!(report[seconds].as_f64().unwrap() > 0.0, "{report}");
    }
    let seconds = |key: &str| report[key].as_f64().unwrap();
    assert!(seconds("sparse_least_seconds") <= seconds("sparse_seconds"));
    assert!(seconds("dense_least_seconds") <= seconds("dense_seconds"));
    let text = succeed(&args[1..]).stdout;
    assert!(
        text.contains("dense") && text.contains("medians of 5 runs"),
        "{text}"
    );
    let bench = |more: &[&str], named: &str| {
        fail(&[&["bench", "--seconds", "0"], more].concat(), 2, named);
    };
    bench(&[], "--layer");
    bench(&["--layer", "48"], "4096x11008");
    bench(&["--layer", "48x0"], "at least 1 each");
    // What would have no effect is no flag.
    bench(&["--layer", "48x48", "--chart", "x.svg"], "--chart");
    bench(
        &["--layer", "48x48", "--prompt-tokens", "4"],
        "--prompt-tokens",
    );
    bench(&["--layer", "48x48", "--new-tokens", "4"], "--new-tokens");
    fail(
        &["bench", "--layer", "40000000x40000000", "--seconds", "0"],
        1,
        "fit in memory",
    );
    bench(&["--layer", "18446744073709551615x4"], "fits in memory");
    bench(&["--layer", "48x48", "--sparsity", "1.5"], "sparsity");
    bench(&["--layer", "48x48", "--pattern", "50%"], "--sparsity");
    bench(
        &["--layer", "48x48", "--pattern", "2:4", "--sparsity", "0.5"],
        "--sparsity",
    );
    bench(&["--layer", "48x48", "--tokens", "0"], "--tokens");
    bench(&["--layer", "48x48", "--dtype", "int3"], "int8");
    bench(&["--layer", "48x48", "--seconds=-1"], "--seconds");
}

#[test]
fn pictures_and_pages_do_not_take_the_names_of_other_files() {
    let folder = tempfile::tempdir().unwrap();
    let victim = folder.path().join("model.safetensors");
    fs::write(&victim, "weights").unwrap();
    let (model, calibration) = (model(), calibration());
    let (model, calibration) = (text(&model), text(&calibration));
    let name = text(&victim);
    for args in [
        vec![
            "compare",
            model,
            "--calibration",
            calibration,
            "--pattern",
            "50%",
            "--chart",
            name,
        ],
        vec![
            "eval", model, "--tasks", "piqa", "--data", "none", "--chart", name,
        ],
        vec!["bench", model, "--chart", name],
    ] {
        fail(&args, 2, "ends in .svg");
    }
    fail(&["report", model, "--out", name], 2, "ends in .html");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "weights");
}

#[test]
fn a_model_whose_forward_pass_overflows_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let (broken, out) = (folder.path().join("broken"), folder.path().join("out"));
    fs::create_dir(&broken).unwrap();
    for file in ["config.json", "tokenizer.json"] {
        fs::copy(model().join(file), broken.join(file)).unwrap();
    }
    // Finite in every weight, infinite behind the last norm.
    let tensors: Vec<(String, Tensor)> = load(&model().join("model.safetensors"))
        .into_iter()
        .map(|(name, tensor)| {
            let tensor = match name.as_str() {
                "model.norm.weight" => Tensor::f32(&tensor.shape, &vec![3e38; tensor.shape[0]]),
                _ => tensor,
            };
            (name, tensor)
        })
        .collect();
    let named: Vec<(&str, Tensor)> = tensors
        .iter()
        .map(|(n, t)| (n.as_str(), t.clone()))
        .collect();
    save(&broken.join("model.safetensors"), &named);
    let prune = [
        "prune",
        text(&broken),
        "--method=magnitude",
        "--pattern=50%",
        "--out",
        text(&out),
    ];
    let run = fail(&prune, 1, "forward pass");
    assert!(run.stderr.contains("(the head)"), "{}", run.stderr);
    assert!(!out.exists());
}
