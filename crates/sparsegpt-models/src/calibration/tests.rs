#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

use super::*;
use crate::checkpoint::fixtures::shared;

const BOS: u32 = 9_999;

/// One token a word: its number; a BOS before each text, as tokenizers with a template do.
fn words(text: &str) -> Result<Vec<u32>> {
    let ids = text.split_whitespace().map(|word| word.parse().unwrap());
    Ok(std::iter::once(BOS).chain(ids).collect())
}

fn file(folder: &TempDir, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    path
}

fn numbers(range: std::ops::Range<u32>) -> String {
    range.map(|n| n.to_string()).collect::<Vec<_>>().join(" ")
}

fn options(samples: usize, sequence_length: usize) -> CalibrationOptions {
    CalibrationOptions {
        samples: Some(samples),
        sequence_length: Some(sequence_length),
        ..CalibrationOptions::default()
    }
}

fn lines(samples: usize, sequence_length: usize) -> CalibrationOptions {
    CalibrationOptions {
        mode: CalibrationMode::Lines,
        ..options(samples, sequence_length)
    }
}

fn token_file(folder: &TempDir, name: &str, dtype: Dtype, shape: &[usize], data: &[u8]) -> PathBuf {
    let view = TensorView::new(dtype, shape.to_vec(), data).unwrap();
    let bytes = safetensors::serialize([(name, view)], None).unwrap();
    file(folder, "ids.safetensors", bytes)
}

fn error_of(result: Result<Calibration>) -> String {
    result.unwrap_err().to_string()
}

fn is_consecutive(window: &[u32]) -> bool {
    window.windows(2).all(|pair| pair[1] == pair[0] + 1)
}

#[test]
fn text_windows_are_consecutive_tokens_from_all_over_the_text() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder, "a.txt", numbers(0..1000).replace("00 ", "00\n"));
    let drawn = draw(&path, &words, &options(400, 16)).unwrap();
    assert_eq!(drawn.sequences.len(), 400);
    assert_eq!(drawn.sequence_length(), 16);
    assert_eq!(drawn.tokens_available, 1001);
    let with_bos = drawn.tokens().filter(|window| window[0] == BOS);
    assert!(with_bos.count() < 10, "the text has one BOS, at its start");
    for window in drawn.tokens() {
        assert!(
            window.len() == 16 && is_consecutive(&window[1..]),
            "{window:?}"
        );
    }
    let starts: Vec<_> = drawn.tokens().map(|window| window[1]).collect();
    assert!(
        starts.iter().any(|&s| s < 100) && starts.iter().any(|&s| s > 880),
        "{starts:?}"
    );
}

#[test]
fn the_seed_decides_the_windows() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder, "a.txt", numbers(0..1000));
    for base in [
        options(8, 32),
        CalibrationOptions {
            samples: Some(1),
            ..lines(1, 32)
        },
    ] {
        let of_seed = |seed| {
            draw(
                &path,
                &words,
                &CalibrationOptions {
                    seed,
                    ..base.clone()
                },
            )
            .unwrap()
        };
        assert_eq!(of_seed(3), of_seed(3));
        assert_ne!(of_seed(3).sequences, of_seed(4).sequences);
        assert_ne!(of_seed(3).fingerprint(), of_seed(4).fingerprint());
    }
}

/// The windows are part of a published figure's recipe: another generator or another use of it
/// changes them, and this test says so.
#[test]
fn the_draw_is_pinned() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder, "a.txt", numbers(0..1000));
    let drawn = draw(&path, &words, &options(4, 4)).unwrap();
    let starts: Vec<_> = drawn.tokens().map(|window| window[0]).collect();
    assert_eq!(starts, [652, 706, 727, 463]);
}

#[test]
fn a_text_of_one_sequence_gives_it_and_a_shorter_one_is_refused() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder, "a.txt", numbers(0..15));
    let drawn = draw(&path, &words, &options(3, 16)).unwrap();
    assert!(
        drawn
            .tokens()
            .all(|window| window[0] == BOS && window[15] == 14)
    );
    let message = error_of(draw(&path, &words, &options(3, 17)));
    for part in ["a.txt", "17 tokens", "16 tokens"] {
        assert!(message.contains(part), "{message}");
    }
    // The default length is the method's, not what happens to fit.
    assert!(error_of(draw(&path, &words, &CalibrationOptions::default())).contains("2048"));
}

#[test]
fn lines_mode_takes_a_window_within_each_of_the_long_documents() {
    let folder = TempDir::new().unwrap();
    // Long documents start at multiples of 1000; each second document is too short.
    let content: String = (0..8)
        .map(|i| {
            format!(
                "{}\r\n{}\n",
                numbers(i * 1000..i * 1000 + 40),
                numbers(0..5)
            )
        })
        .collect();
    let path = file(&folder, "a.txt", content);
    let drawn = draw(&path, &words, &lines(8, 20)).unwrap();
    let sources: HashSet<_> = drawn.tokens().map(|window| window[1] / 1000).collect();
    assert_eq!(sources.len(), 8, "no document gives two windows");
    for window in drawn.tokens() {
        assert!(
            window.len() == 20 && is_consecutive(&window[1..]),
            "{window:?}"
        );
    }
    let message = error_of(draw(&path, &words, &lines(9, 20)));
    for part in ["a.txt", "expected 9", "20 tokens", "found 8 among 16"] {
        assert!(message.contains(part), "{message}");
    }
    // 41 tokens with the BOS: exactly as long is long enough, one more is not.
    let whole = draw(&path, &words, &lines(8, 41)).unwrap();
    assert!(whole.tokens().all(|window| window[0] == BOS));
    assert!(error_of(draw(&path, &words, &lines(1, 42))).contains("found 0 among 16"));
}

#[test]
fn json_lines_are_joined_or_taken_one_by_one() {
    let folder = TempDir::new().unwrap();
    let records: String = (0..4)
        .map(|i| format!("{{\"body\": \"{}\"}}\n", numbers(i * 100..i * 100 + 10)))
        .collect();
    let path = file(&folder, "a.jsonl", records);
    let body = |base: CalibrationOptions| CalibrationOptions {
        text_key: "body".to_owned(),
        ..base
    };
    let text = draw(&path, &words, &body(options(2, 41))).unwrap();
    assert_eq!(text.sequences[0].tokens[10..12], [9, 100]);
    let lines = draw(&path, &words, &body(lines(4, 11))).unwrap();
    assert!(
        lines
            .tokens()
            .all(|window| window[0] == BOS && is_consecutive(&window[1..]))
    );
    assert!(error_of(draw(&path, &words, &options(2, 8))).contains("\"text\""));
}

#[test]
fn ready_token_ids_of_each_type_are_taken_in_order() {
    let folder = TempDir::new().unwrap();
    let ids = [1_i64, 2, 3, 40_000, 50_000, 6];
    let rows = [vec![1, 2, 3], vec![40_000, 50_000, 6]];
    let i32s: Vec<_> = ids
        .iter()
        .flat_map(|&id| (id as i32).to_le_bytes())
        .collect();
    let i64s: Vec<_> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    for (dtype, data) in [
        (Dtype::I32, &i32s),
        (Dtype::U32, &i32s),
        (Dtype::I64, &i64s),
    ] {
        let path = token_file(&folder, "tokens", dtype, &[2, 3], data);
        let all = draw(&path, &words, &CalibrationOptions::default()).unwrap();
        assert!(all.tokens().eq(rows.iter().map(Vec::as_slice)));
        assert_eq!(all.tokens_available, 6);
        let part = draw(&path, &words, &options(1, 2)).unwrap();
        assert!(part.tokens().eq([&[1, 2][..]]));
        for too_much in [options(3, 3), options(2, 4)] {
            let message = error_of(draw(&path, &words, &too_much));
            assert!(message.contains("found 2 of 3"), "{message}");
        }
    }
}

#[test]
fn ready_token_ids_that_are_none_are_refused() {
    let folder = TempDir::new().unwrap();
    let all = CalibrationOptions::default();
    let negative: Vec<_> = [5_i32, -1].iter().flat_map(|id| id.to_le_bytes()).collect();
    let path = token_file(&folder, "tokens", Dtype::I32, &[1, 2], &negative);
    assert!(error_of(draw(&path, &words, &all)).contains("found -1"));
    let path = token_file(&folder, "tokens", Dtype::U32, &[1, 2], &negative);
    let drawn = draw(&path, &words, &all).unwrap();
    assert!(drawn.tokens().eq([&[5, u32::MAX][..]]));
    let large: Vec<_> = [5_i64, 1 << 32]
        .iter()
        .flat_map(|id| id.to_le_bytes())
        .collect();
    let path = token_file(&folder, "tokens", Dtype::I64, &[1, 2], &large);
    assert!(error_of(draw(&path, &words, &all)).contains("4294967296"));

    let cases: [(&str, Dtype, &[usize], &str); 5] = [
        ("tokens", Dtype::F32, &[1, 2], "F32"),
        ("tokens", Dtype::I32, &[2], "[2]"),
        ("tokens", Dtype::I32, &[2, 1], "[2, 1]"),
        ("tokens", Dtype::I32, &[0, 2], "[0, 2]"),
        ("ids", Dtype::I32, &[1, 2], "\"ids\""),
    ];
    for (name, dtype, shape, expected) in cases {
        let elements: usize = shape.iter().product();
        let path = token_file(&folder, name, dtype, shape, &negative[..4 * elements]);
        let message = error_of(draw(&path, &words, &all));
        assert!(
            message.contains(expected) && message.contains("ids.safetensors"),
            "{message}"
        );
    }
    let path = file(
        &folder,
        "cut.safetensors",
        b"\xff\xff\xff\xff\xff\xff\xff\x7f{",
    );
    assert!(error_of(draw(&path, &words, &all)).contains("cut.safetensors"));
    let path = file(&folder, "empty.safetensors", b"");
    assert!(error_of(draw(&path, &words, &all)).contains("empty.safetensors"));
}

#[test]
fn settings_out_of_range_are_refused() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder, "a.txt", numbers(0..100));
    assert!(error_of(draw(&path, &words, &options(0, 8))).starts_with("samples:"));
    let too_many = error_of(draw(&path, &words, &options(usize::MAX, 8)));
    assert!(too_many.starts_with("samples:"), "{too_many}");
    for length in [0, 1] {
        assert!(error_of(draw(&path, &words, &options(1, length))).starts_with("sequence length:"));
    }
    let failing = |_: &str| {
        Err(Error::Tokenizer {
            path: "tokenizer.json".into(),
            reason: "no such model".to_owned(),
        })
    };
    assert!(error_of(draw(&path, &failing, &options(1, 8))).contains("no such model"));
    assert!(error_of(draw(&folder.path().join("b.txt"), &words, &options(1, 8))).contains("b.txt"));
}

#[test]
fn a_look_at_a_file_finds_what_needs_no_tokenizer() {
    let folder = TempDir::new().unwrap();
    let look = |path: &Path, options: &CalibrationOptions| {
        check(path, options).map_err(|error| error.to_string())
    };
    let text = file(&folder, "a.txt", "short\n");
    let json = file(&folder, "a.jsonl", "{\"text\": \"a\"}\n{\"text\": 1}\n");
    let ids = [0_u32, 1, 2, 3].map(u32::to_le_bytes).concat();
    let tokens = token_file(&folder, "tokens", Dtype::U32, &[2, 2], &ids);
    for path in [&text, &json] {
        assert_eq!(look(path, &CalibrationOptions::default()), Ok(()));
    }
    assert_eq!(look(&tokens, &options(2, 2)), Ok(()));
    for (path, options, named) in [
        (&text, options(0, 8), "samples"),
        (&text, options(1, 1), "sequence length"),
        (&tokens, options(3, 2), "found 2 of 2"),
        (&folder.path().join("absent"), options(1, 8), "absent"),
        (&folder.path().to_path_buf(), options(1, 8), "directory"),
        (&file(&folder, "empty", ""), options(1, 8), "empty"),
        (
            &file(&folder, "blank.jsonl", "\n\n"),
            options(1, 8),
            "no document",
        ),
        (
            &file(&folder, "key.jsonl", "{\"a\": 1}"),
            options(1, 8),
            "\"text\"",
        ),
        (&file(&folder, "binary", [0xff, 0]), options(1, 8), "UTF-8"),
    ] {
        let error = look(path, &options).unwrap_err();
        assert!(error.contains(named), "{named}: {error}");
    }
}

#[test]
fn ids_outside_a_vocabulary_are_found() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder, "a.txt", numbers(0..7));
    let drawn = draw(&path, &words, &options(1, 8)).unwrap();
    assert!(drawn.check_vocabulary(10_000).is_ok());
    let message = drawn.check_vocabulary(9_999).unwrap_err().to_string();
    assert!(message.contains("9999"), "{message}");
}

#[test]
fn names_and_options_are_read_back() {
    for mode in CalibrationMode::ALL {
        assert_eq!(mode.to_string().parse::<CalibrationMode>().unwrap(), mode);
        assert_eq!(serde_json::to_value(mode).unwrap(), mode.name());
    }
    assert!("line".parse::<CalibrationMode>().is_err());
    let read: CalibrationOptions =
        serde_json::from_str(r#"{"samples": 4, "mode": "lines"}"#).unwrap();
    assert_eq!((read.samples, read.mode), (Some(4), CalibrationMode::Lines));
    assert!(serde_json::from_str::<CalibrationOptions>(r#"{"sample": 4}"#).is_err());
}

#[test]
fn the_reference_figures_calibration_tokens_are_read() {
    let Some(path) = shared("golden/smollm2/expected.safetensors") else {
        return;
    };
    // The file has `tokens` (for logits) too; the calibration tokens are preferred.
    let ready = draw(&path, &words, &CalibrationOptions::default()).unwrap();
    assert_eq!((ready.sequences.len(), ready.sequence_length()), (32, 512));
    assert!(ready.check_vocabulary(49_152).is_ok());
}
