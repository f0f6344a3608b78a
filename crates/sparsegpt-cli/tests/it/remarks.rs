//! What a run says of flags that change nothing, of files that are not what they seem, and of where a mistake stands.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{Tensor, calibration, entries, fail, load, model, noise, save, succeed, text};
use safetensors::Dtype;

const TABLE: &str = "model.embed_tokens.weight";

/// The bundled model in a folder of its own, with another config.json and other tensors.
fn changed(
    folder: &Path,
    config: impl FnOnce(String) -> String,
    tensors: impl FnOnce(&mut HashMap<String, Tensor>),
) -> PathBuf {
    fs::create_dir(folder).unwrap();
    for name in entries(&model()) {
        fs::copy(model().join(&name), folder.join(&name)).unwrap();
    }
    let path = folder.join("config.json");
    fs::write(&path, config(fs::read_to_string(&path).unwrap())).unwrap();
    let path = folder.join("model.safetensors");
    let mut all = load(&path);
    tensors(&mut all);
    let all: Vec<_> = all.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
    save(&path, &all);
    folder.to_path_buf()
}

#[test]
fn a_head_beside_the_embeddings_that_it_should_be_is_used_where_it_differs() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let tokens = at("tokens.safetensors");
    save(&tokens, &[("tokens", Tensor::i32(&[1, 4], &[5, 6, 7, 8]))]);
    let logits = |model: &Path| {
        let out = at("logits.safetensors");
        let mut args = vec!["logits", text(model), "--tokens", text(&tokens)];
        args.extend(["--out", text(&out), "--force"]);
        let run = succeed(&args);
        (load(&out).remove("logits").unwrap(), run.stderr)
    };
    let untied = |config: String| {
        let tied = "\"tie_word_embeddings\": true";
        assert!(config.contains(tied));
        config.replace(tied, "\"tie_word_embeddings\": false")
    };
    let copy = |tensors: &mut HashMap<String, Tensor>| {
        let head = tensors[TABLE].clone();
        tensors.insert("lm_head.weight".to_owned(), head);
    };
    let other = |tensors: &mut HashMap<String, Tensor>| {
        let mut head = tensors[TABLE].clone();
        head.bytes.rotate_left(2 * head.shape[1]);
        tensors.insert("lm_head.weight".to_owned(), head);
    };
    let (tied, silent) = logits(&model());
    assert!(!silent.contains("lm_head"), "{silent}");
    let (same, silent) = logits(&changed(&at("same"), |config| config, copy));
    assert!(same == tied && !silent.contains("lm_head"), "{silent}");
    let (expected, silent) = logits(&changed(&at("untied"), untied, other));
    assert!(expected != tied && !silent.contains("lm_head"), "{silent}");
    let differing = changed(&at("differing"), |config| config, other);
    let (found, told) = logits(&differing);
    assert!(found == expected);
    for part in [
        text(&differing),
        "tie_word_embeddings",
        "lm_head.weight",
        TABLE,
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }

    // What is made of it has both.
    let out = at("pruned");
    let mut prune = vec!["prune", text(&differing), "--out", text(&out)];
    prune.extend(["--method", "magnitude", "--pattern", "50%"]);
    succeed(&prune);
    let (pruned, told) = logits(&out);
    assert!(pruned != expected && told.contains("lm_head.weight"));
    let gguf = at("model.gguf");
    succeed(&["export", text(&differing), text(&gguf)]);
    let bytes = fs::read(&gguf).unwrap();
    let name: &[u8] = b"\x0d\0\0\0\0\0\0\0output.weight";
    assert!(bytes.windows(name.len()).any(|window| window == name));
}

#[test]
fn a_type_that_cannot_be_read_is_found_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let name = "model.layers.3.mlp.up_proj.weight";
    let (calibration, out) = (calibration(), folder.path().join("out"));
    for (dtype, bytes) in [(Dtype::I32, 4), (Dtype::F8_E4M3, 1)] {
        let model = changed(
            &folder.path().join(format!("{dtype:?}")),
            |config| config,
            |tensors| {
                let tensor = tensors.get_mut(name).unwrap();
                tensor.dtype = dtype;
                tensor.bytes = vec![0; tensor.shape.iter().product::<usize>() * bytes];
            },
        );
        let mut args = vec!["prune", text(&model), "--pattern", "50%"];
        args.extend(["--out", text(&out), "--calibration", text(&calibration)]);
        let run = fail(&args, 3, name);
        let told = [text(&model), "expected f32", &format!("{dtype:?}")];
        assert!(told.iter().all(|part| run.stderr.contains(part)), "{run:?}");
        // Said when the calibration text is looked at.
        assert!(!run.stderr.contains("--sequence-length"), "{run:?}");
        args.push("--dry-run");
        fail(&args, 3, name);
    }
    assert!(!out.exists());
}

/// Runs what must succeed, and looks which flags were told not to be read.
fn unread(args: &[&str], expected: &[&str]) {
    let run = succeed(args);
    let lines = run.stderr.lines();
    let found: Vec<&str> = lines
        .filter_map(|line| line.split_once(" is not read: "))
        .map(|(flag, _)| flag)
        .collect();
    assert_eq!(found, expected, "{args:?}: {run:?}");
}

#[test]
fn flags_that_change_nothing_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let (model, text_file) = (model(), calibration());
    let (model, text_file) = (text(&model), text(&text_file));
    let out = folder.path().join("out");
    let greedy = ["generate", model, "--prompt", "A", "--max-new-tokens", "1"];
    let greedy = [&greedy[..], &["--top-k", "3", "--seed", "1"]].concat();
    unread(&greedy, &["--top-k", "--seed"]);
    let more = [
        "--min-p",
        "0.1",
        "--samples",
        "2",
        "--repetition-penalty",
        "1.1",
    ];
    unread(
        &[&greedy[..], &more].concat(),
        &["--top-k", "--min-p", "--seed", "--samples"],
    );
    unread(&[&greedy[..], &["--temperature", "1"]].concat(), &[]);
    let topic = ["generate", model, "--prompt", "A", "--topic", "trees"];
    unread(
        &[&topic[..], &["--max-new-tokens", "1"]].concat(),
        &["--topic"],
    );

    let mut eval = vec!["eval", model, "--text", text_file, "--limit", "1"];
    eval.extend(["--sequence-length", "16"]);
    unread(&eval, &[]);
    eval.extend(["--text-key", "body"]);
    unread(&eval, &["--text-key"]);

    let prune = ["prune", model, "--out", text(&out), "--force"];
    let only = ["--only", "layer:0", "--pattern", "50%", "--samples", "1"];
    let calibrated = [&prune[..], &only, &["--calibration", text_file]].concat();
    unread(&calibrated, &[]);
    let keyed = ["--text-key", "body", "--min-expert-tokens", "4"];
    unread(
        &[&calibrated[..], &keyed].concat(),
        &["--text-key", "--min-expert-tokens"],
    );
    unread(
        &[&calibrated[..], &["--method", "magnitude"]].concat(),
        &["--calibration", "--samples"],
    );
    let tokens = folder.path().join("tokens.safetensors");
    save(&tokens, &[("tokens", Tensor::i32(&[1, 32], &[5; 32]))]);
    let ready = [&prune[..], &only, &["--calibration", text(&tokens)]].concat();
    let of_text = ["--seed", "3", "--calibration-mode", "lines"];
    unread(
        &[&ready[..], &of_text].concat(),
        &["--calibration-mode", "--seed"],
    );
    let rounding = [&prune[..], &["--bits", "4", "--dry-run"]].concat();
    let sized = ["--calibration", text_file, "--mask-block-size", "64"];
    unread(&[&rounding[..], &sized].concat(), &["--mask-block-size"]);

    let compare = ["compare", model, "--methods", "wanda", "--dtype", "f32"];
    let compare = [&compare[..], &only, &["--calibration", text_file]].concat();
    unread(
        &[&compare[..], &["--limit", "1"]].concat(),
        &["--limit", "--dtype"],
    );
    // What would give other zeros than those asked for.
    let allocated = [&compare[..], &["--allocate", "owl"]].concat();
    fail(&allocated, 2, "--allocate");
    let best = ["--methods", "wanda,better"];
    let unknown = [&compare[..2], &compare[4..], &best].concat();
    fail(&unknown, 2, "--methods wanda,better");

    let layer = folder.path().join("layer.safetensors");
    let weight = Tensor::f32(&[4, 8], &noise(32, 1));
    let inputs = Tensor::f32(&[16, 8], &noise(128, 2));
    save(&layer, &[("weight", weight), ("inputs", inputs)]);
    let result = folder.path().join("result.safetensors");
    let mut rounding = vec!["layer", text(&layer), text(&result), "--bits", "4"];
    rounding.extend(["--mask-block-size", "4"]);
    unread(&rounding, &["--mask-block-size"]);
}

#[test]
fn mistakes_name_their_flag_and_the_recipe_that_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let (model, calibration) = (model(), calibration());
    let out = folder.path().join("out");
    let mut prune = vec!["prune", text(&model), "--out", text(&out)];
    prune.extend(["--calibration", text(&calibration)]);
    for (flag, value, named) in [
        ("--rule", "mlp=5:4", "--rule mlp=5:4: "),
        ("--rule", "layer:x=50%", "--rule \"layer:x\": "),
        ("--pattern-list", "50%,5:4", "--pattern-list: entry 2: "),
        ("--skip", "blocks:3-1", "--skip \"blocks:3-1\": "),
        ("--only", "layer:x", "--only \"layer:x\": "),
        ("--block-size", "0", "--block-size: expected"),
        ("--dense-targets", "2", "--dense-targets: expected"),
        ("--held-out", "999", "--held-out: expected"),
        ("--bits", "9", "--bits: expected 2 to 8"),
    ] {
        let mut args = prune.clone();
        if !["--rule", "--pattern-list"].contains(&flag) {
            args.extend(["--pattern", "50%"]);
        }
        args.extend([flag, value]);
        let run = fail(&args, 2, named);

        let recipe = folder.path().join("recipe.toml");
        let value = match flag {
            "--rule" | "--skip" | "--only" => format!("['{value}']"),
            "--pattern-list" => format!("'{value}'"),
            _ => value.to_owned(),
        };
        fs::write(&recipe, format!("{} = {value}\n", &flag[2..])).unwrap();
        args.truncate(args.len() - 2);
        args.extend(["--recipe-file", text(&recipe)]);
        let place = format!("({flag} from {})", text(&recipe));
        let in_recipe = fail(&args, 2, &place);
        let mut lines = run.stderr.lines();
        let told = lines.find(|line| line.starts_with("error: ")).unwrap();
        assert!(in_recipe.stderr.contains(told), "{told}: {in_recipe:?}");
    }
    assert_eq!(entries(folder.path()), ["recipe.toml"]);
}

#[test]
fn a_layer_takes_a_recipe_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (layer, recipe, out) = (
        at("in.safetensors"),
        at("recipe.toml"),
        at("out.safetensors"),
    );
    let weight = Tensor::f32(&[4, 8], &noise(32, 1));
    save(&layer, &[("weight", weight)]);
    fs::write(
        &recipe,
        "method = 'magnitude'\npattern = '25%'\nthreads = 1\n",
    )
    .unwrap();
    let args = [
        "layer",
        text(&layer),
        text(&out),
        "--recipe-file",
        text(&recipe),
    ];
    let zeros = |more: &[&str]| {
        let run = succeed(&[&args[..], &["--force", "--json"], more].concat());
        run.json()["zeros"].as_u64().unwrap()
    };
    assert_eq!(zeros(&[]), 8);
    assert_eq!(zeros(&["--pattern", "50%"]), 16);
    fs::write(&recipe, "skip = ['x']\n").unwrap();
    fail(&args, 3, "recipe.toml: unknown key \"skip\"");
    // Which JSON would take for values that were not given.
    for line in ["damping = nan", "bits = inf", "pattern = [-inf]"] {
        fs::write(&recipe, line).unwrap();
        fail(&args, 3, "expected a finite number");
    }
    fs::write(&recipe, "pattern = '50%'\nthreads = 100000\n").unwrap();
    let run = fail(&[&args[..], &["--force"]].concat(), 2, "--threads from");
    assert!(run.stderr.contains(text(&recipe)), "{run:?}");
}

#[test]
fn paths_in_a_recipe_are_relative_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let (model, recipe) = (model(), folder.path().join("recipe.toml"));
    fs::copy(calibration(), folder.path().join("text.txt")).unwrap();
    let lines = "calibration = 'text.txt'\npattern = '50%'\nsamples = 1\nonly = ['layer:0']\n";
    fs::write(&recipe, lines).unwrap();
    let out = folder.path().join("out");
    let args = ["prune", text(&model), "--recipe-file", text(&recipe)];
    let run = succeed(&[&args[..], &["--out", text(&out), "--json"]].concat());
    let source = run.json()["calibration"]["source"].to_string();
    let file = folder.path().join("text.txt");
    assert!(source.contains(text(&file)), "{source}");
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let marked = changed(
        &folder.path().join("marked"),
        |config| format!("\u{feff}{config}"),
        |_| (),
    );
    let tokenizer = marked.join("tokenizer.json");
    let bytes = fs::read(&tokenizer).unwrap();
    fs::write(&tokenizer, [b"\xef\xbb\xbf", &bytes[..]].concat()).unwrap();
    let words = "To be, or not to be: that is the question.\n".repeat(20);
    let perplexity = |model: &Path, name: &str, content: &str| {
        let file = folder.path().join(name);
        fs::write(&file, content).unwrap();
        let mut args = vec!["eval", text(model), "--text", text(&file), "--json"];
        args.extend(["--sequence-length", "32"]);
        succeed(&args).json()["perplexity"].as_f64().unwrap()
    };
    let expected = perplexity(&model(), "plain.txt", &words);
    let with_mark = format!("\u{feff}{words}");
    assert_eq!(perplexity(&marked, "marked.txt", &with_mark), expected);

    // What is written of it can be read again.
    let out = folder.path().join("out");
    let mut prune = vec!["prune", text(&marked), "--out", text(&out)];
    prune.extend(["--method", "magnitude", "--pattern", "0%", "--dtype", "f32"]);
    succeed(&prune);
    assert_eq!(perplexity(&out, "plain.txt", &words), expected);
}

#[test]
fn logits_that_are_no_numbers_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let broken = changed(
        &at("broken"),
        |config| config,
        |tensors| {
            let large = Tensor::f32(&[192], &[3e38; 192]);
            tensors.insert("model.norm.weight".to_owned(), large);
        },
    );
    let (tokens, out) = (at("tokens.safetensors"), at("logits.safetensors"));
    save(&tokens, &[("tokens", Tensor::i32(&[1, 4], &[5, 6, 7, 8]))]);
    let run = succeed(&[
        "logits",
        text(&broken),
        "--tokens",
        text(&tokens),
        "--out",
        text(&out),
    ]);
    let logits = load(&out).remove("logits").unwrap();
    let values = logits.to_f32().into_iter();
    let wrong = values.filter(|value| !value.is_finite()).count();
    assert!(wrong > 0);
    let told = format!("{wrong} logits are not finite");
    assert!(run.stderr.contains(&told), "{}", run.stderr);
}
