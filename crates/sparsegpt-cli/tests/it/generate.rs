//! Texts from one model and from several, by prompts, presets and chat templates.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{calibration, entries, fail, model, succeed, text};
use serde_json::{Value, json};

/// Flags for a short draw.
const DRAWN: [&str; 6] = [
    "--max-new-tokens",
    "12",
    "--temperature",
    "1",
    "--seed",
    "3",
];

fn generated(models: &[&str], flags: &[&str]) -> Value {
    succeed(&[&["generate", "--json"], models, flags, &DRAWN].concat()).json()
}

/// The bundled model, half of it pruned away.
fn pruned(folder: &Path) -> PathBuf {
    let (out, model, calibration) = (folder.join("pruned"), model(), calibration());
    let mut args = vec!["prune", text(&model), "--out", text(&out)];
    args.extend(["--pattern", "50%", "--method", "magnitude"]);
    args.extend(["--calibration", text(&calibration), "--samples", "1"]);
    succeed(&args);
    out
}

/// The bundled model with a chat template.
fn with_template(folder: &Path, template: &str) -> PathBuf {
    let out = folder.join("chat");
    fs::create_dir_all(&out).unwrap();
    for name in entries(&model()) {
        fs::copy(model().join(&name), out.join(&name)).unwrap();
    }
    let file = out.join("tokenizer_config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    config["chat_template"] = template.into();
    config["bos_token"] = "<|endoftext|>".into();
    fs::write(&file, config.to_string()).unwrap();
    out
}

#[test]
fn samples_of_models_side_by_side_are_those_of_each_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (dense, pruned) = (model(), pruned(folder.path()));
    let models = [text(&dense), text(&pruned)];
    let prompt = ["--prompt", "A hacker is"];
    let both = generated(&models, &[&prompt[..], &["--samples", "5"]].concat());
    assert_eq!(both["settings"]["samples"], 5);
    assert!(both.get("text").is_none(), "{both}");
    for (model, of_model) in models.iter().zip(both["models"].as_array().unwrap()) {
        assert_eq!(of_model["model"], *model);
        let samples = of_model["samples"].as_array().unwrap();
        assert_eq!(samples.len(), 5);
        let alone = generated(&[model], &prompt);
        for key in ["text", "tokens", "stop"] {
            assert_eq!(samples[0][key], alone[key], "{key}");
        }
        assert_eq!(alone["models"][0]["samples"], json!([samples[0]]));
        let few = generated(&[model], &[&prompt[..], &["--samples", "2"]].concat());
        assert_eq!(few["models"][0]["samples"], json!(samples[..2]));
        assert_ne!(samples[0]["tokens"], samples[1]["tokens"]);
    }
    let tokens = |model: usize| &both["models"][model]["samples"][0]["tokens"];
    assert_ne!(tokens(0), tokens(1));

    // The same texts for people, the dense model's first.
    let run = |flags: &[&str]| {
        let args = [&["generate"], &models[..], &prompt, flags, &DRAWN].concat();
        succeed(&args).stdout
    };
    let text_of = |model: usize, sample: usize| {
        let text = &both["models"][model]["samples"][sample]["text"];
        text.as_str().unwrap()
    };
    assert_eq!(
        run(&[]),
        format!(
            "jargon\n------\n{}\n\npruned\n------\n{}\n\n",
            text_of(0, 0),
            text_of(1, 0)
        )
    );
    let several = run(&["--samples", "2"]);
    let heading = "pruned, sample 2 of 2\n---------------------\n";
    let last = several.split_once(heading).unwrap().1;
    assert_eq!(last, format!("{}\n\n", text_of(1, 1)));
    assert!(several.starts_with("jargon, sample 1 of 2\n"), "{several}");
}

#[test]
fn settings_change_what_is_drawn() {
    let model = model();
    let tokens = |flags: &[&str]| {
        let flags = [&["--prompt", "The"], flags].concat();
        generated(&[text(&model)], &flags)["tokens"].clone()
    };
    let drawn = tokens(&[]);
    // Only the likeliest token has all of its own probability.
    let mut greedy = vec!["generate", text(&model), "--prompt", "The", "--json"];
    greedy.extend(["--max-new-tokens", "12"]);
    let likeliest = succeed(&greedy).json()["tokens"].clone();
    assert_eq!(tokens(&["--min-p", "1"]), likeliest);
    assert_ne!(drawn, likeliest);
    // A penalty counts without a draw too: no token comes a second time.
    greedy.extend(["--repetition-penalty", "1000"]);
    let once = succeed(&greedy).json()["tokens"].clone();
    let ids = |tokens: &Value| -> Vec<u64> {
        let tokens = tokens.as_array().unwrap();
        tokens.iter().map(|token| token.as_u64().unwrap()).collect()
    };
    let mut different = ids(&once);
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), 12, "{once}");
    assert_eq!(
        tokens(&["--min-p", "0", "--repetition-penalty", "1"]),
        drawn
    );
}

#[test]
fn presets_begin_a_text_and_say_how_it_is_drawn() {
    let model = model();
    let preset = |name: &str, flags: &[&str]| {
        let args = ["generate", text(&model), "--preset", name];
        let args = [&args[..], &["--max-new-tokens", "4"], flags].concat();
        succeed(&args)
    };
    for name in ["poem", "story", "code", "definition", "dialogue"] {
        let report = preset(name, &["--json", "--topic", "two brackets"]).json();
        assert_eq!(report["preset"], name);
        let prompt = report["prompt"].as_str().unwrap();
        assert!(prompt.contains("two brackets"), "{prompt}");
        assert!(report["settings"]["temperature"].as_f64().unwrap() > 0.0);
        assert_eq!(report["settings"]["max_new_tokens"], 4);
        let shown = preset(name, &["--topic", "two brackets"]).stdout;
        let whole = format!("{prompt}{}\n", report["text"].as_str().unwrap());
        assert_eq!(shown, whole);
    }
    // A flag has the last word.
    let report = preset("poem", &["--json", "--temperature", "0"]).json();
    assert_eq!(report["settings"]["temperature"], 0.0);
    let penalty = &report["settings"]["repetition_penalty"];
    assert_eq!(penalty.as_f64(), Some(1.1));
}

#[test]
fn conversations_are_written_by_the_models_template() {
    let folder = tempfile::tempdir().unwrap();
    let template = "{{ bos_token }}{% for message in messages %}[{{ message.role }}] \
                    {{ message.content | trim }}<|endoftext|>{% endfor %}\
                    {% if add_generation_prompt %}[assistant]{% endif %}";
    let chat = with_template(folder.path(), template);
    let mut flags = vec!["--chat", "--prompt", " What is a hack? "];
    let report = generated(&[text(&chat)], &flags);
    let of_model = &report["models"][0];
    let rendered = "<|endoftext|>[user] What is a hack?<|endoftext|>[assistant]";
    assert_eq!(of_model["rendered"], rendered);
    // Special tokens are one token each, and none is added to them.
    let plain = |text_of: &str| {
        let report = generated(&[text(&chat)], &["--prompt", text_of]);
        report["models"][0]["prompt_tokens"].as_u64().unwrap()
    };
    let parts = plain("[user] What is a hack?") + plain("[assistant]");
    assert_eq!(of_model["prompt_tokens"], parts + 2);
    assert_ne!(
        report["text"],
        generated(&[text(&chat)], &["--prompt", " What is a hack? "])["text"]
    );

    flags.extend(["--system", "Be brief."]);
    let report = generated(&[text(&chat)], &flags);
    let rendered = "<|endoftext|>[system] Be brief.<|endoftext|>[user] What is a hack?<|endoftext|>[assistant]";
    assert_eq!(report["models"][0]["rendered"], rendered);
    assert_eq!(report["system"], "Be brief.");

    let flags = ["--chat", "--preset", "definition", "--topic", "kluge"];
    let report = generated(&[text(&chat)], &flags);
    let rendered = report["models"][0]["rendered"].as_str().unwrap();
    assert!(
        rendered.contains("[user] Define the word \"kluge\""),
        "{rendered}"
    );
}

#[test]
fn templates_that_do_not_serve_are_told_with_their_file() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--chat", "--prompt", "x", "--max-new-tokens", "1"];
    let refused = |model: &Path, named: &str| {
        let run = fail(&[&["generate", text(model)], &flags[..]].concat(), 3, named);
        assert!(run.stderr.contains("chat template: "), "{run:?}");
        assert!(run.stderr.contains(text(model)), "{run:?}");
    };
    refused(&model(), "the model has none");
    for (template, named) in [
        ("{% for %}", "template:1"),
        ("{{ raise_exception('no such role') }}", "no such role"),
        ("{{ messages.nobody.name }}", "undefined"),
        (
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
            "steps",
        ),
    ] {
        refused(&with_template(folder.path(), template), named);
    }
    // A file of its own counts more than the key.
    let chat = with_template(folder.path(), "{{ messages[0].content }}");
    succeed(&[&["generate", text(&chat)], &flags[..]].concat());
    fs::write(chat.join("chat_template.jinja"), "{% endif %}").unwrap();
    refused(&chat, "chat_template.jinja");
}

#[test]
fn flags_out_of_range_or_without_their_partner_are_named() {
    let model = model();
    let refused = |flags: &[&str], named: &str| {
        fail(&[&["generate", text(&model)], flags].concat(), 2, named);
    };
    let with = |flag: &'static str, value: &'static str| ["--prompt", "x", flag, value];
    for (flag, value) in [
        ("--min-p", "1.5"),
        ("--min-p", "-0.1"),
        ("--repetition-penalty", "0"),
        ("--repetition-penalty", "-2"),
        ("--repetition-penalty", "inf"),
        ("--temperature", "-1"),
        ("--top-p", "0"),
        ("--top-k", "0"),
        ("--samples", "0"),
        ("--samples", "1001"),
        ("--samples", "many"),
        ("--system", "Be brief."),
    ] {
        refused(&with(flag, value), flag);
    }
    refused(&["--preset", "novel"], "--preset");
    refused(&["--preset", "poem", "--prompt", "x"], "--preset");
    refused(&[], "--prompt");
}
