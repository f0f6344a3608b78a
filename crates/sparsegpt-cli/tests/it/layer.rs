//! `sparsegpt layer`: what goes in, what comes out.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use crate::common::{self, Tensor, command, fail, load, noise, run, save, succeed, text};

const ROWS: usize = 12;
const COLS: usize = 40;
const TOKENS: usize = 96;

struct Files {
    _folder: tempfile::TempDir,
    input: PathBuf,
    output: PathBuf,
}

fn files(tensors: &[(&str, Tensor)]) -> Files {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (
        folder.path().join("in.safetensors"),
        folder.path().join("out.safetensors"),
    );
    save(&input, tensors);
    Files {
        _folder: folder,
        input,
        output,
    }
}

fn weight() -> Tensor {
    Tensor::f32(&[ROWS, COLS], &noise(ROWS * COLS, 1))
}

fn inputs() -> Tensor {
    Tensor::f32(&[TOKENS, COLS], &noise(TOKENS * COLS, 2))
}

fn solve(files: &Files, flags: &[&str]) -> serde_json::Value {
    let mut args = vec![
        "layer",
        text(&files.input),
        text(&files.output),
        "--force",
        "--json",
    ];
    args.extend(flags);
    succeed(&args).json()
}

fn zeros(values: &[f32]) -> usize {
    values.iter().filter(|&&value| value == 0.0).count()
}

/// Columns of `scale`, 1 where it has a value for each row only.
fn groups(scale: &Tensor) -> usize {
    scale.shape.get(1).copied().unwrap_or(1)
}

/// Checks codes, scale and zero against the weights, bit for bit.
fn check_codes(output: &Path, max_code: u8, group_of: &dyn Fn(usize) -> usize) {
    let out = load(output);
    let (codes, scale, zero) = (&out["codes"], &out["scale"], &out["zero"]);
    assert_eq!(codes.shape, [ROWS, COLS]);
    assert_eq!(scale.shape, zero.shape);
    let groups = groups(scale);
    let (pruned, scale, zero) = (out["pruned"].to_f32(), scale.to_f32(), zero.to_f32());
    for row in 0..ROWS {
        for col in 0..COLS {
            let at = row * COLS + col;
            let code = codes.bytes[at];
            assert!(code <= max_code);
            let grid = row * groups + group_of(col);
            let expected = (f32::from(code) - zero[grid]) * scale[grid];
            assert_eq!(
                pruned[at].to_bits(),
                expected.to_bits(),
                "row {row}, column {col}"
            );
            assert!(out["kept"].bytes[at] == 1 || pruned[at] == 0.0);
        }
    }
}

#[test]
fn patterns_have_exact_counts() {
    let files = files(&[("weight", weight()), ("inputs", inputs())]);
    for (pattern, expected) in [
        ("50%", 240),
        ("33%", 158),
        ("row:30%", 144),
        ("2:4", 240),
        ("1:8", 60),
    ] {
        let report = solve(&files, &["--pattern", pattern]);
        let out = load(&files.output);
        let pruned = out["pruned"].to_f32();
        assert_eq!(out["pruned"].shape, [ROWS, COLS]);
        assert_eq!(zeros(&pruned), expected, "{pattern}");
        assert_eq!(
            out["kept"].bytes.iter().filter(|&&kept| kept == 0).count(),
            expected
        );
        assert!(!out.contains_key("codes"));
        assert_eq!(report["pruned"], expected);
        assert_eq!(
            (&report["rows"], &report["cols"]),
            (&ROWS.into(), &COLS.into())
        );
        assert_eq!(report["tokens"], TOKENS);
        assert_eq!(report["damping"], 0.01);
        assert!(report["relative_error"].as_f64().unwrap() > 0.0);
        assert!(report["seconds_solve"].as_f64().unwrap() > 0.0);
        assert!(report["stages"]["factor"].as_f64().unwrap() > 0.0);
        if let Some((n, m)) = pattern.split_once(':').filter(|(n, _)| *n != "row") {
            let (n, m): (usize, usize) = (n.parse().unwrap(), m.parse().unwrap());
            assert!(pruned.chunks(m).all(|group| zeros(group) == n), "{pattern}");
        }
    }
}

#[test]
fn bf16_products_are_named_or_refused() {
    let files = files(&[("weight", weight()), ("inputs", inputs())]);
    // Small blocks, so that there are products between them.
    let flags = ["--pattern=50%", "--block-size=8", "--mask-block-size=8"];
    assert_eq!(solve(&files, &flags)["products"], "f32");
    let plain = load(&files.output)["pruned"].to_f32();
    let mut args = vec![
        "layer",
        text(&files.input),
        text(&files.output),
        "--force",
        "--json",
    ];
    args.extend(flags);
    args.push("--bf16-products");
    let emulated = command(&args)
        .env("SPARSEGPT_EMULATE_BF16", "1")
        .output()
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&emulated.stdout).unwrap();
    assert_eq!(report["products"], "bf16");
    assert_eq!(report["pruned"], 240);
    assert_ne!(load(&files.output)["pruned"].to_f32(), plain);
    if run(&args).code != Some(0) {
        fail(&args, 1, "avx512bf16");
    }
    let wanda = ["--pattern=50%", "--method=wanda", "--bf16-products"];
    fail(&[&args[..4], &wanda].concat(), 2, "--bf16-products has");
}

#[test]
fn several_patterns_give_what_each_gives_alone() {
    let files = files(&[("weight", weight()), ("inputs", inputs())]);
    let patterns = ["40%", "50%", "2:4", "dense"];
    let quantized = ["--bits", "4", "--group-size", "8"];
    let mut flags = quantized.to_vec();
    flags.extend(patterns.iter().flat_map(|pattern| ["--pattern", pattern]));
    let report = solve(&files, &flags);
    let together = load(&files.output);
    let variants = report["variants"].as_array().unwrap();
    assert_eq!(variants.len(), patterns.len());
    let mut tensors = 0;
    for (variant, pattern) in variants.iter().zip(patterns) {
        let mut flags = quantized.to_vec();
        flags.extend(["--pattern", pattern]);
        let alone = solve(&files, &flags);
        for (name, tensor) in load(&files.output) {
            assert!(
                together[&format!("{pattern}.{name}")] == tensor,
                "{pattern} {name}"
            );
            tensors += 1;
        }
        assert_eq!(variant["prefix"], format!("{pattern}."));
        assert!(alone.get("prefix").is_none());
        for key in [
            "pattern",
            "pruned",
            "zeros",
            "relative_error",
            "quantization",
        ] {
            assert_eq!(variant[key], alone[key], "{pattern} {key}");
        }
    }
    assert_eq!(together.len(), tensors);
    // One factorization: the others have none to account for.
    assert!(variants[0]["stages"]["factor"].as_f64().unwrap() > 0.0);
    assert!(variants[1..].iter().all(|v| v["stages"]["factor"] == 0.0));
    let mut args = vec!["layer", text(&files.input), text(&files.output), "--force"];
    args.extend(["--pattern", "50%", "--pattern", "2:4"]);
    let told = succeed(&args).stdout;
    assert_eq!(told.lines().count(), 3, "{told}");
}

#[test]
fn codes_give_the_weights_back() {
    let files = files(&[("weight", weight()), ("inputs", inputs())]);
    let cases: [(&[&str], u8, usize); 10] = [
        (&["--bits", "4"], 15, COLS),
        (&["--bits", "8", "--pattern", "50%"], 255, COLS),
        (&["--bits", "3", "--symmetric", "--pattern", "2:4"], 7, COLS),
        (
            &[
                "--bits",
                "4",
                "--group-size",
                "8",
                "--mse",
                "--pattern",
                "50%",
            ],
            15,
            8,
        ),
        (&["--bits", "2", "--group-size", "16"], 3, 16),
        (
            &[
                "--bits",
                "4",
                "--group-size",
                "8",
                "--static-groups",
                "--act-order",
            ],
            15,
            8,
        ),
        (
            &["--bits", "4", "--per-tensor", "--pattern", "row:50%"],
            15,
            COLS,
        ),
        (
            &[
                "--bits",
                "4",
                "--method",
                "magnitude",
                "--pattern",
                "50%",
                "--group-size",
                "8",
            ],
            15,
            8,
        ),
        (
            &["--bits", "5", "--method", "wanda", "--pattern", "2:4"],
            31,
            COLS,
        ),
        (
            &[
                "--bits",
                "4",
                "--block-size",
                "16",
                "--mask-block-size",
                "8",
                "--damping",
                "0.1",
                "--pattern",
                "25%",
            ],
            15,
            COLS,
        ),
    ];
    for (flags, max_code, group) in cases {
        let report = solve(&files, flags);
        check_codes(&files.output, max_code, &|col| col / group);
        let out = load(&files.output);
        assert_eq!(groups(&out["scale"]), COLS.div_ceil(group), "{flags:?}");
        assert_eq!(
            out["scale"].shape.len(),
            if group == COLS { 1 } else { 2 },
            "{flags:?}"
        );
        assert!(!out.contains_key("group_index"), "{flags:?}");
        assert_eq!(report["zeros"], zeros(&out["pruned"].to_f32()), "{flags:?}");
        if flags.contains(&"--per-tensor") {
            let scale = out["scale"].to_f32();
            assert!(scale.iter().all(|&value| value == scale[0]));
        }
    }
}

#[test]
fn permuted_groups_come_with_their_index() {
    let files = files(&[("weight", weight()), ("inputs", inputs())]);
    solve(
        &files,
        &[
            "--bits",
            "4",
            "--group-size",
            "8",
            "--act-order",
            "--pattern",
            "50%",
        ],
    );
    let index = load(&files.output)["group_index"].to_i32();
    assert_eq!(index.len(), COLS);
    for group in 0..5 {
        assert_eq!(index.iter().filter(|&&of| of == group).count(), 8);
    }
    assert!(!index.is_sorted());
    check_codes(&files.output, 15, &|col| index[col] as usize);
}

#[test]
fn a_mask_is_kept_or_extended() {
    // 1 in 4 pruned.
    let keep: Vec<u8> = (0..ROWS * COLS).map(|at| u8::from(at % 4 != 1)).collect();
    let mask = Tensor::u8(&[ROWS, COLS], &keep);
    let files = files(&[("weight", weight()), ("inputs", inputs()), ("mask", mask)]);
    solve(&files, &[]);
    assert_eq!(load(&files.output)["kept"].bytes, keep);
    solve(&files, &["--bits", "4"]);
    assert_eq!(load(&files.output)["kept"].bytes, keep);
    solve(&files, &["--pattern", "50%"]);
    let kept = &load(&files.output)["kept"].bytes;
    assert_eq!(
        kept.iter().filter(|&&kept| kept == 0).count(),
        ROWS * COLS / 2
    );
    assert!(kept.iter().zip(&keep).all(|(kept, given)| kept <= given));
    solve(&files, &["--pattern", "50%", "--pattern", "dense"]);
    assert_eq!(load(&files.output)["dense.kept"].bytes, keep);
    let args = [
        "layer",
        text(&files.input),
        text(&files.output),
        "--force",
        "--pattern",
        "2:4",
    ];
    fail(&args, 2, "unstructured");
}

#[test]
fn hessian_and_inputs_say_the_same() {
    let (w, x) = (weight(), inputs());
    let values = x.to_f32();
    let mut hessian = vec![0.0_f64; COLS * COLS];
    for token in values.chunks(COLS) {
        for i in 0..COLS {
            for j in 0..COLS {
                hessian[i * COLS + j] += 2.0 * f64::from(token[i]) * f64::from(token[j]);
            }
        }
    }
    let hessian: Vec<f32> = hessian.into_iter().map(|value| value as f32).collect();
    let hessian = Tensor::f32(&[COLS, COLS], &hessian);
    let in_three = Tensor {
        shape: vec![3, TOKENS / 3, COLS],
        ..x.clone()
    };
    let from_inputs = files(&[("weight", w.clone()), ("inputs", x)]);
    let from_hessian = files(&[("weight", w.clone()), ("hessian", hessian)]);
    let from_three = files(&[("weight", w), ("inputs", in_three)]);
    let mut results = Vec::new();
    for files in [&from_inputs, &from_hessian, &from_three] {
        let report = solve(files, &["--pattern", "50%"]);
        results.push((load(&files.output), report));
    }
    assert_eq!(results[2].1["sequences"], 3);
    assert_eq!(results[1].1["tokens"], 0);
    for (other, _) in &results[1..] {
        assert_eq!(results[0].0["kept"], other["kept"]);
        for (a, b) in results[0].0["pruned"]
            .to_f32()
            .iter()
            .zip(other["pruned"].to_f32())
        {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }
}

#[test]
fn half_precision_is_read() {
    let values = noise(ROWS * COLS, 1);
    let files = files(&[
        ("weight", Tensor::bf16(&[ROWS, COLS], &values)),
        (
            "inputs",
            Tensor::bf16(&[TOKENS, COLS], &noise(TOKENS * COLS, 2)),
        ),
    ]);
    solve(&files, &["--pattern", "50%"]);
    assert_eq!(zeros(&load(&files.output)["pruned"].to_f32()), 240);
}

#[test]
fn magnitude_needs_weights_alone() {
    let files = files(&[("weight", weight())]);
    let report = solve(&files, &["--pattern", "50%", "--method", "magnitude"]);
    assert_eq!(report["relative_error"], serde_json::Value::Null);
    let args = [
        "layer",
        text(&files.input),
        text(&files.output),
        "--force",
        "--pattern",
        "50%",
    ];
    fail(&args, 3, "inputs");
}

#[test]
fn mistakes_are_named() {
    let fails = |tensors: &[(&str, Tensor)], flags: &[&str], code: i32, named: &str| {
        let files = files(tensors);
        let mut args = vec!["layer", text(&files.input), text(&files.output)];
        args.extend(flags);
        fail(&args, code, named);
        assert!(!files.output.exists());
    };
    let fifty = ["--pattern", "50%"];
    let good = [("weight", weight()), ("inputs", inputs())];
    fails(&good, &[], 2, "nothing to do");
    fails(&good, &["--pattern", "2:7"], 2, "groups of 7");
    let fifty_and = |other| ["--pattern", "50%", "--pattern", other];
    fails(&good, &fifty_and("2:7"), 2, "groups of 7");
    fails(&good, &fifty_and("50%"), 2, "given twice");
    fails(&good, &["--bits", "1"], 2, "2 to 8");
    fails(&good[1..], &fifty, 3, "weight");
    fails(
        &[("weight", weight()), ("hessian", weight())],
        &fifty,
        3,
        "40 x 40",
    );
    fails(
        &[
            ("weight", weight()),
            ("inputs", Tensor::f32(&[4, 3], &[0.0; 12])),
        ],
        &fifty,
        3,
        "x 40",
    );
    fails(
        &[
            ("weight", Tensor::u8(&[2, 2], &[1; 4])),
            ("inputs", inputs()),
        ],
        &fifty,
        3,
        "U8",
    );
    fails(
        &[
            ("weight", Tensor::f32(&[0, COLS], &[])),
            ("inputs", inputs()),
        ],
        &fifty,
        3,
        "the weights: found 0 x 40",
    );
    let zeros = Tensor::f32(&[TOKENS, COLS], &[0.0; TOKENS * COLS]);
    fails(
        &[("weight", weight()), ("inputs", zeros)],
        &fifty,
        4,
        "Hessian is zero",
    );
    let mut values = noise(ROWS * COLS, 1);
    values[7] = f32::NAN;
    let nan = Tensor::f32(&[ROWS, COLS], &values);
    fails(&[("weight", nan), ("inputs", inputs())], &fifty, 3, "NaN");
    let mut values = noise(TOKENS * COLS, 2);
    values[9] = f32::INFINITY;
    let infinite = Tensor::f32(&[TOKENS, COLS], &values);
    fails(
        &[("weight", weight()), ("inputs", infinite)],
        &fifty,
        3,
        "inf",
    );
    let diagonal = |entry: f32| {
        let mut values = vec![0.0; COLS * COLS];
        for column in 0..COLS {
            values[column * (COLS + 1)] = 1.0;
        }
        values[3 * (COLS + 1)] = entry;
        Tensor::f32(&[COLS, COLS], &values)
    };
    for (entry, named) in [(f32::NAN, "NaN"), (-2.0, "column 3")] {
        fails(
            &[("weight", weight()), ("hessian", diagonal(entry))],
            &fifty,
            3,
            named,
        );
    }
    let mut values = vec![0.0; COLS * COLS];
    for column in 0..COLS {
        values[column * (COLS + 1)] = 1.0;
    }
    (values[COLS + 4], values[4 * COLS + 1]) = (f32::INFINITY, f32::INFINITY);
    let hessian = Tensor::f32(&[COLS, COLS], &values);
    fails(
        &[("weight", weight()), ("hessian", hessian)],
        &fifty,
        3,
        "inf in the Hessian",
    );
    // What lies above the diagonal is not read: it must not say something else.
    for (above, named) in [(f32::NAN, "NaN"), (0.5, "row 1, column 4")] {
        let mut values = vec![0.0; COLS * COLS];
        for column in 0..COLS {
            values[column * (COLS + 1)] = 1.0;
        }
        values[COLS + 4] = above;
        let hessian = Tensor::f32(&[COLS, COLS], &values);
        fails(
            &[("weight", weight()), ("hessian", hessian)],
            &fifty,
            3,
            named,
        );
    }
    for damping in ["1.5", "1e30", "inf", "NaN", "-0.1"] {
        let flags = ["--pattern", "50%", "--damping", damping];
        fails(&good, &flags, 2, "from 0 to 1");
    }
    let twos = Tensor::u8(&[ROWS, COLS], &[2; ROWS * COLS]);
    fails(
        &[good[0].clone(), good[1].clone(), ("mask", twos)],
        &fifty,
        3,
        "mask",
    );
    let small = Tensor::u8(&[1, COLS], &[1; COLS]);
    fails(
        &[good[0].clone(), good[1].clone(), ("mask", small)],
        &fifty,
        3,
        "mask",
    );
}

#[test]
fn a_layer_that_overflows_is_unsolved() {
    // Neighbours that are nearly the same: what is pruned of one goes to the other, which is near the largest f32.
    let tokens = noise(TOKENS * COLS / 2, 2);
    let inputs: Vec<f32> = tokens.iter().flat_map(|&x| [x, x * 1.001]).collect();
    let files = files(&[
        ("weight", Tensor::f32(&[1, COLS], &[3e38; COLS])),
        ("inputs", Tensor::f32(&[TOKENS, COLS], &inputs)),
    ]);
    let args = ["layer", text(&files.input), text(&files.output)];
    fail(&[&args[..], &["--pattern", "1:2"]].concat(), 4, "overflows");
    assert!(!files.output.exists());
}

#[test]
fn patterns_in_another_order_of_columns_do_not_cost_a_factor_twice() {
    let files = files(&[("weight", weight()), ("inputs", inputs())]);
    let patterns = ["50%", "2:4", "40%"];
    let mut flags = vec!["--act-order"];
    flags.extend(patterns.iter().flat_map(|pattern| ["--pattern", pattern]));
    let report = solve(&files, &flags);
    let variants = report["variants"].as_array().unwrap();
    let told: Vec<_> = variants.iter().map(|v| &v["pattern"]).collect();
    assert_eq!(told, patterns);
    // 2:4 keeps its groups together, so that its order is another.
    let factored = |v: &serde_json::Value| v["stages"]["factor"].as_f64().unwrap() > 0.0;
    let factored: Vec<bool> = variants.iter().map(factored).collect();
    assert_eq!(factored, [true, true, false]);
    let together = load(&files.output);
    for pattern in patterns {
        solve(&files, &["--act-order", "--pattern", pattern]);
        let alone = load(&files.output);
        assert!(together[&format!("{pattern}.pruned")] == alone["pruned"]);
    }
}

#[test]
fn what_a_killed_run_left_is_removed() {
    let files = files(&[("weight", weight()), ("inputs", inputs())]);
    let folder = files.input.parent().unwrap();
    // No process has this number.
    let left = folder.join(".out.safetensors.4194304-0.tmp");
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("out.safetensors"), "half").unwrap();
    let mut args = vec!["layer", text(&files.input), text(&files.output)];
    args.extend(["--pattern", "50%"]);
    let run = succeed(&args);
    let named = ".out.safetensors.4194304-0.tmp: left by a run that was killed; removed";
    assert!(run.stderr.contains(named), "{run:?}");
    assert_eq!(
        common::entries(folder),
        ["in.safetensors", "out.safetensors"]
    );
}

#[test]
fn an_existing_output_needs_force() {
    let files = files(&[("weight", weight()), ("inputs", inputs())]);
    std::fs::write(&files.output, "precious").unwrap();
    let mut args = vec![
        "layer",
        text(&files.input),
        text(&files.output),
        "--pattern",
        "50%",
    ];
    fail(&args, 2, "--force");
    assert_eq!(std::fs::read(&files.output).unwrap(), b"precious");
    args.push("--force");
    succeed(&args);
    assert_eq!(
        common::entries(files.input.parent().unwrap()),
        ["in.safetensors", "out.safetensors"]
    );
}

#[test]
fn a_truncated_file_is_an_input_error() {
    let files = files(&[("weight", weight()), ("inputs", inputs())]);
    let bytes = std::fs::read(&files.input).unwrap();
    std::fs::write(&files.input, &bytes[..bytes.len() - 5]).unwrap();
    fail(
        &[
            "layer",
            text(&files.input),
            text(&files.output),
            "--pattern",
            "50%",
        ],
        3,
        "safetensors",
    );
    assert!(!files.output.exists());
}

#[test]
fn a_product_of_narrow_matrices_gives_back_what_it_can() {
    let files = files(&[("weight", weight()), ("inputs", inputs())]);
    let alone = solve(&files, &["--pattern", "2:4"]);
    let once = solve(&files, &["--pattern", "2:4", "--rank", "3"]);
    let out = load(&files.output);
    assert_eq!(out["lora_a"].shape, [3, COLS]);
    assert_eq!(out["lora_b"].shape, [ROWS, 3]);
    assert_eq!(zeros(&out["pruned"].to_f32()), ROWS * COLS / 2);
    let often = solve(
        &files,
        &["--pattern", "2:4", "--rank", "3", "--rounds", "5"],
    );
    let of = |report: &serde_json::Value, key: &str| report[key].as_f64().unwrap();
    let both = "relative_error_of_both";
    assert!(of(&once, both) < of(&alone, "relative_error"));
    assert!(of(&often, both) <= of(&once, both));
    let (input, output) = (text(&files.input), text(&files.output));
    for (flags, named) in [
        (&["--rounds", "2"][..], "--rank"),
        (&["--rank", "0"], "--rank: expected at least 1"),
        (&["--rank", "1", "--rounds", "0"], "rounds"),
        (&["--rank", "1", "--pattern", "50%"], "one --pattern"),
    ] {
        let mut args = vec!["layer", input, output, "--force", "--pattern", "2:4"];
        args.extend(flags);
        fail(&args, 2, named);
    }
}

#[test]
fn the_error_of_magnitude_is_measured_where_it_can_be() {
    let files = files(&[("weight", weight()), ("inputs", inputs())]);
    let report = solve(&files, &["--pattern", "50%", "--method", "magnitude"]);
    assert!(report["relative_error"].as_f64().unwrap() > 0.0);
    let alone = self::files(&[("weight", weight())]);
    let report = solve(&alone, &["--pattern", "50%", "--method", "magnitude"]);
    assert!(report["relative_error"].is_null());
}

#[test]
fn sequences_are_held_out() {
    let sequences = Tensor::f32(&[4, TOKENS / 4, COLS], &noise(TOKENS * COLS, 2));
    let files = files(&[("weight", weight()), ("inputs", sequences)]);
    let report = solve(&files, &["--pattern=50%", "--method=best", "--held-out=1"]);
    assert_eq!(report["tokens"], TOKENS * 3 / 4);
    assert!(report["held_out_error"].as_f64().unwrap() > 0.0);
    let args = ["layer", text(&files.input), text(&files.output), "--force"];
    fail(
        &[&args[..], &["--pattern=50%", "--held-out=4"]].concat(),
        2,
        "--held-out 4",
    );
}

#[test]
fn a_given_mask_is_refined_by_swaps() {
    let keep: Vec<u8> = (0..ROWS * COLS).map(|at| u8::from(at % 2 == 0)).collect();
    let mask = Tensor::u8(&[ROWS, COLS], &keep);
    let files = files(&[("weight", weight()), ("inputs", inputs()), ("mask", mask)]);
    solve(&files, &[]);
    let kept = load(&files.output)["kept"].bytes.clone();
    assert_eq!(kept, keep);
    solve(&files, &["--swaps", "20"]);
    let swapped = load(&files.output)["kept"].bytes.clone();
    let ones = |mask: &[u8]| mask.iter().filter(|&&kept| kept == 1).count();
    assert_ne!(swapped, keep);
    for (before, after) in keep.chunks(COLS).zip(swapped.chunks(COLS)) {
        assert_eq!(ones(before), ones(after));
    }
}
