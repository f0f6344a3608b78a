#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use ::parquet::basic::Compression;
use ::parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use tempfile::TempDir;

use super::*;
use crate::checkpoint::fixtures::shared;

fn file(folder: &TempDir, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    path
}

/// A parquet file with a number column before the text column, two row groups, and null rows
/// where `rows` has `None`.
fn parquet_file(
    folder: &TempDir,
    column: &str,
    rows: &[Option<&[u8]>],
    compression: Compression,
) -> PathBuf {
    let path = folder.path().join("rows.parquet");
    let schema = format!(
        "message rows {{ REQUIRED INT64 id; OPTIONAL BYTE_ARRAY {column} (UTF8); \
         REPEATED BYTE_ARRAY tags (UTF8); }}"
    );
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .build();
    let mut writer = SerializedFileWriter::new(
        File::create(&path).unwrap(),
        Arc::new(parse_message_type(&schema).unwrap()),
        Arc::new(properties),
    )
    .unwrap();
    for group in rows.chunks(rows.len().div_ceil(2).max(1)) {
        let mut row_group = writer.next_row_group().unwrap();
        let mut ids = row_group.next_column().unwrap().unwrap();
        let numbers: Vec<i64> = (0..).take(group.len()).collect();
        ids.typed::<Int64Type>()
            .write_batch(&numbers, None, None)
            .unwrap();
        ids.close().unwrap();
        let mut texts = row_group.next_column().unwrap().unwrap();
        let values: Vec<_> = group
            .iter()
            .flatten()
            .map(|text| ByteArray::from(text.to_vec()))
            .collect();
        let levels: Vec<_> = group.iter().map(|row| i16::from(row.is_some())).collect();
        texts
            .typed::<ByteArrayType>()
            .write_batch(&values, Some(&levels), None)
            .unwrap();
        texts.close().unwrap();
        let mut tags = row_group.next_column().unwrap().unwrap();
        let none = vec![0_i16; group.len()];
        tags.typed::<ByteArrayType>()
            .write_batch(&[], Some(&none), Some(&none))
            .unwrap();
        tags.close().unwrap();
        row_group.close().unwrap();
    }
    writer.close().unwrap();
    path
}

fn text_parquet(folder: &TempDir, rows: &[&str]) -> PathBuf {
    let rows: Vec<_> = rows.iter().map(|row| Some(row.as_bytes())).collect();
    parquet_file(folder, "text", &rows, Compression::UNCOMPRESSED)
}

fn json_lines(key: &str, rows: &[&str]) -> String {
    rows.iter()
        .map(|row| format!("{}\n", serde_json::json!({ key: row, "id": 1 })))
        .collect()
}

fn read_all(path: &Path, key: &str) -> Result<Vec<String>> {
    documents(path, key)?.collect()
}

fn error_of<T: Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn lines_of_plain_text_keep_their_ends_and_raw_is_byte_for_byte() {
    let folder = TempDir::new().unwrap();
    let content = "first\r\n\n  third … ü\n\u{feff}no end";
    // A byte order mark is none anywhere but at the beginning.
    for (name, before) in [("a.txt", ""), ("marked.txt", "\u{feff}")] {
        let path = file(&folder, name, format!("{before}{content}"));
        assert_eq!(
            read_all(&path, "text").unwrap(),
            ["first\r\n", "\n", "  third … ü\n", "\u{feff}no end"]
        );
        assert_eq!(read_text(&path, "text").unwrap(), content);
        assert_eq!(prepare(Recipe::Raw, &path).unwrap(), content);
    }
}

#[test]
fn json_lines_give_the_selected_key_and_pass_over_blank_lines() {
    let folder = TempDir::new().unwrap();
    let content =
        "\u{feff}{\"text\": \"a\\nb\", \"body\": \"x\"}\r\n\n{\"body\":\"y\",\"text\":\"\"}";
    // By its ending, and by its first line.
    for name in ["a.jsonl", "a"] {
        let path = file(&folder, name, content);
        assert_eq!(TextFormat::of(&path).unwrap(), TextFormat::JsonLines);
        assert_eq!(read_all(&path, "text").unwrap(), ["a\nb", ""]);
    }
    let path = file(&folder, "a.jsonl", content);
    assert_eq!(read_all(&path, "body").unwrap(), ["x", "y"]);
    assert_eq!(prepare(Recipe::Raw, &path).unwrap(), "a\nb\n");
}

#[test]
fn parquet_rows_cross_batches_and_row_groups() {
    let folder = TempDir::new().unwrap();
    let rows: Vec<_> = (0..3000).map(|i| format!("row {i} ü")).collect();
    let bytes: Vec<_> = rows.iter().map(|row| Some(row.as_bytes())).collect();
    for compression in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(Default::default()),
        Compression::LZ4_RAW,
        Compression::BROTLI(Default::default()),
    ] {
        let path = parquet_file(&folder, "sentence", &bytes, compression);
        assert_eq!(
            read_all(&path, "sentence").unwrap(),
            rows,
            "{compression:?}"
        );
    }
}

#[test]
fn the_ending_decides_and_without_one_the_content() {
    let folder = TempDir::new().unwrap();
    let parquet = text_parquet(&folder, &["a"]);
    let cases = [
        ("a.txt", b"{\"text\": \"a\"}\n".to_vec(), TextFormat::Plain),
        ("a.JSONL", b"not json".to_vec(), TextFormat::JsonLines),
        (
            "json",
            b"\n  {\"text\": \"a\"}\nrest".to_vec(),
            TextFormat::JsonLines,
        ),
        ("brace", b"{ not json\n".to_vec(), TextFormat::Plain),
        (
            "plain.test",
            b"words\n{\"text\": \"a\"}".to_vec(),
            TextFormat::Plain,
        ),
        (
            "long",
            format!("{{\"text\": \"{}\"}}", "a".repeat(100_000)).into(),
            TextFormat::JsonLines,
        ),
        ("parquet", fs::read(parquet).unwrap(), TextFormat::Parquet),
    ];
    for (name, content, expected) in cases {
        let path = file(&folder, name, content);
        assert_eq!(TextFormat::of(&path).unwrap(), expected, "{name}");
    }
}

#[test]
fn errors_name_the_file_and_the_line() {
    let folder = TempDir::new().unwrap();
    let cases: [(&str, &[u8], &[&str]); 9] = [
        (
            "latin1.txt",
            b"good\nbad \xe9t\xe9\n",
            &["latin1.txt", "line 2", "0xe9", "position 4"],
        ),
        (
            "latin1.jsonl",
            b"\n{\"text\": \"\xff\"}\n",
            &["latin1.jsonl", "line 2", "UTF-8"],
        ),
        ("empty.txt", b"", &["empty.txt", "empty file"]),
        ("blank.jsonl", b"\n \n", &["blank.jsonl", "no document"]),
        (
            "cut.jsonl",
            b"{\"text\": \"a\"}\n{\"text\": ",
            &["cut.jsonl", "line 2", "JSON"],
        ),
        (
            "key.jsonl",
            b"{\"body\": \"a\"}\n",
            &["key.jsonl", "line 1", "\"text\"", "\"body\""],
        ),
        (
            "number.jsonl",
            b"{\"text\": 3}\n",
            &["number.jsonl", "line 1", "a number"],
        ),
        (
            "array.json",
            b"[{\"text\": \"a\"}]\n",
            &["array.json", "line 1", "an array"],
        ),
        ("packed.txt", b"\x1f\x8b\x08\0rest", &["packed.txt", "gzip"]),
    ];
    for (name, content, expected) in cases {
        let path = file(&folder, name, content);
        let message = error_of(read_text(&path, "text"));
        for part in expected {
            assert!(message.contains(part), "{name}: {message}");
        }
    }
    assert!(error_of(read_text(&folder.path().join("absent.txt"), "text")).contains("absent.txt"));
    assert!(read_text(folder.path(), "text").is_err());
}

#[test]
fn an_error_ends_the_documents() {
    let folder = TempDir::new().unwrap();
    let path = file(
        &folder,
        "a.jsonl",
        "{\"text\": \"a\"}\nbroken\n{\"text\": \"b\"}\n",
    );
    let mut documents = documents(&path, "text").unwrap();
    assert!(documents.next().unwrap().is_ok());
    assert!(documents.next().unwrap().is_err());
    assert!(documents.next().is_none());
}

#[test]
fn parquet_errors_name_the_column_and_the_row() {
    let folder = TempDir::new().unwrap();
    let path = text_parquet(&folder, &["a", "b"]);
    let message = error_of(read_all(&path, "body"));
    assert!(
        message.contains("\"body\"") && message.contains("\"text\""),
        "{message}"
    );
    assert!(error_of(read_all(&path, "id")).contains("INT64"));
    assert!(error_of(read_all(&path, "tags")).contains("repeated"));

    let rows: [Option<&[u8]>; 5] = [Some(b"a"), Some(b"b"), Some(b"c"), Some(b"d"), None];
    let path = parquet_file(&folder, "text", &rows, Compression::SNAPPY);
    assert!(error_of(read_all(&path, "text")).contains("row 5"));
    let rows: [Option<&[u8]>; 3] = [Some(b"a"), Some(b"b"), Some(b"\xff")];
    let path = parquet_file(&folder, "text", &rows, Compression::SNAPPY);
    let message = error_of(read_all(&path, "text"));
    assert!(
        message.contains("row 3") && message.contains("UTF-8"),
        "{message}"
    );
    let path = parquet_file(&folder, "text", &[], Compression::SNAPPY);
    assert!(error_of(read_text(&path, "text")).contains("no document"));
}

#[test]
fn a_folder_is_told_to_be_none_of_the_files() {
    let folder = TempDir::new().unwrap();
    for name in ["a", "a.txt", "a.jsonl", "a.parquet"] {
        let path = folder.path().join(name);
        fs::create_dir(&path).unwrap();
        let message = error_of(read_text(&path, "text"));
        assert!(message.contains("a directory"), "{message}");
        assert!(message.contains(path.to_str().unwrap()), "{message}");
    }
}

/// The footer's codec entry is changed to Zstandard (6), as the crate cannot write what it was
/// built without.
#[test]
fn a_codec_left_out_of_the_build_is_named() {
    let folder = TempDir::new().unwrap();
    let path = text_parquet(&folder, &["a", "b"]);
    let mut bytes = fs::read(&path).unwrap();
    let footer = bytes.len() - 8;
    let metadata_length = u32::from_le_bytes(bytes[footer..footer + 4].try_into().unwrap());
    let metadata_start = footer - metadata_length as usize;
    // Thrift's compact protocol: field 3 (path_in_schema) a list of one string, then field 4
    // (codec) as a zigzag i32.
    let pattern = [b"\x04text".as_slice(), b"\x15\x00"].concat();
    let mut replaced = 0;
    for at in metadata_start..footer - pattern.len() {
        if bytes[at..].starts_with(&pattern) {
            bytes[at + pattern.len() - 1] = 12;
            replaced += 1;
        }
    }
    assert_eq!(replaced, 2, "one codec entry in each row group");
    fs::write(&path, bytes).unwrap();
    let message = error_of(read_all(&path, "text"));
    assert!(
        message.contains("zstd")
            && message.contains("snappy")
            && message.contains(path.to_str().unwrap()),
        "{message}"
    );
}

#[test]
fn damaged_parquet_files_never_panic() {
    let folder = TempDir::new().unwrap();
    let path = text_parquet(&folder, &["alpha", "beta", "gamma", "alpha", "delta"]);
    let intact = fs::read(&path).unwrap();
    for length in (0..intact.len()).step_by(7) {
        let cut = file(&folder, "cut.parquet", &intact[..length]);
        assert!(
            read_all(&cut, "text").is_err(),
            "{length} of {} bytes",
            intact.len()
        );
    }
    // Whatever a flipped bit makes of the file, reading it returns.
    for position in 0..intact.len() {
        let mut flipped = intact.clone();
        flipped[position] ^= 1 << (position % 8);
        let flipped = file(&folder, "flipped.parquet", flipped);
        let _ = read_all(&flipped, "text");
    }
}

#[test]
fn recipes_give_one_text_from_every_format() {
    let folder = TempDir::new().unwrap();
    // Rows as the data set has them: with their line ends, blank rows empty.
    let rows = ["", " = Title = \n", "", " First . \n", " Second . \n"];
    let plain = file(
        &folder,
        "wiki.raw",
        " \n = Title = \n \n First . \n Second . \n",
    );
    let jsonl = file(&folder, "wiki.jsonl", json_lines("text", &rows));
    let parquet = text_parquet(&folder, &rows);
    for path in [plain, jsonl, parquet] {
        assert_eq!(
            prepare(Recipe::WikiText2, &path).unwrap(),
            "\n\n = Title = \n\n\n\n\n First . \n\n\n Second . \n",
            "{}",
            path.display()
        );
    }

    let sentences = ["no it was n't", "but <unk> said"];
    let plain = file(&folder, "ptb.txt", " no it was n't \n but <unk> said \n");
    let jsonl = file(&folder, "ptb.jsonl", json_lines("sentence", &sentences));
    let bytes: Vec<_> = sentences.iter().map(|row| Some(row.as_bytes())).collect();
    let parquet = parquet_file(&folder, "sentence", &bytes, Compression::SNAPPY);
    for path in [&plain, &jsonl, &parquet] {
        assert_eq!(
            prepare(Recipe::Ptb, path).unwrap(),
            "no it was n't but <unk> said"
        );
    }
    assert!(prepare_with_key(Recipe::Ptb, &jsonl, "text").is_err());

    let pages: Vec<_> = (0..1200).map(|i| format!("page {i}")).collect();
    let pages: Vec<_> = pages.iter().map(String::as_str).collect();
    let expected = pages[..1100].join(" ");
    let plain = file(&folder, "c4.txt", pages.join("\n\n"));
    let jsonl = file(&folder, "c4.json", json_lines("text", &pages));
    let parquet = text_parquet(&folder, &pages);
    for path in [plain, jsonl, parquet] {
        assert_eq!(
            prepare(Recipe::C4, &path).unwrap(),
            expected,
            "{}",
            path.display()
        );
    }
    assert_eq!(Recipe::C4.token_limit(2048), Some(524_288));
    assert_eq!(Recipe::WikiText2.token_limit(2048), None);
}

#[test]
fn recipe_names_are_read_back() {
    for recipe in Recipe::ALL {
        assert_eq!(recipe.to_string().parse::<Recipe>().unwrap(), recipe);
        assert_eq!(serde_json::to_value(recipe).unwrap(), recipe.name());
    }
    assert!(error_of("wiki".parse::<Recipe>()).contains("wikitext2"));
}

#[test]
fn published_test_splits_are_prepared_as_published() {
    let Some(data) = shared("data") else { return };
    let wikitext2 = prepare(Recipe::WikiText2, &data.join("wikitext2/wiki.test.raw")).unwrap();
    assert_eq!(wikitext2.len(), 1_296_370);
    assert_eq!(
        sha256_hex(wikitext2.as_bytes()),
        "696cca6b65a171b0a358a4be6732cdfdf2dd6164a32e20fd70e3c13fc4dfae83"
    );
    let raw = prepare(Recipe::Raw, &data.join("wikitext2/wiki.test.raw")).unwrap();
    assert_eq!(
        sha256_hex(raw.as_bytes()),
        "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"
    );
    let ptb = prepare(Recipe::Ptb, &data.join("ptb/ptb.test.txt")).unwrap();
    assert!(ptb.starts_with("no it was n't black monday but while the new york stock exchange"));
    assert!(!ptb.contains('\n') && !ptb.contains("  "));
    // One document a line, fewer than the recipe's limit: all are taken.
    let c4 = prepare(Recipe::C4, &data.join("c4/c4_sample.txt")).unwrap();
    assert!(!c4.contains('\n'));
    let documents = documents(&data.join("lambada/lambada_test.jsonl"), DEFAULT_TEXT_KEY).unwrap();
    assert_eq!(documents.format(), TextFormat::JsonLines);
    assert_eq!(documents.map(Result::unwrap).count(), 5153);
}

/// SHA-256 (FIPS 180-4), to compare with published digests.
fn sha256_hex(message: &[u8]) -> String {
    let primes: Vec<u32> = (2..)
        .filter(|&n| (2..n).all(|d| n % d != 0))
        .take(64)
        .collect();
    // The first 32 bits of the fractional part of the primes' square and cube roots.
    let fraction = |root: f64| (root.fract() * 2_f64.powi(32)) as u32;
    let constants: Vec<u32> = primes
        .iter()
        .map(|&p| fraction(f64::from(p).cbrt()))
        .collect();
    let mut state: Vec<u32> = primes[..8]
        .iter()
        .map(|&p| fraction(f64::from(p).sqrt()))
        .collect();

    let mut padded = message.to_vec();
    padded.push(0x80);
    padded.resize((padded.len() + 8).next_multiple_of(64) - 8, 0);
    padded.extend((message.len() as u64 * 8).to_be_bytes());
    for block in padded.chunks_exact(64) {
        let mut w: Vec<u32> = block
            .chunks_exact(4)
            .map(|b| u32::from_be_bytes(b.try_into().unwrap()))
            .collect();
        for t in 16..64 {
            let s0 = w[t - 15].rotate_right(7) ^ w[t - 15].rotate_right(18) ^ (w[t - 15] >> 3);
            let s1 = w[t - 2].rotate_right(17) ^ w[t - 2].rotate_right(19) ^ (w[t - 2] >> 10);
            w.push(
                s1.wrapping_add(w[t - 7])
                    .wrapping_add(s0)
                    .wrapping_add(w[t - 16]),
            );
        }
        let mut v = state.clone();
        for t in 0..64 {
            let s1 = v[4].rotate_right(6) ^ v[4].rotate_right(11) ^ v[4].rotate_right(25);
            let choice = (v[4] & v[5]) ^ (!v[4] & v[6]);
            let t1 = [s1, choice, constants[t], w[t]]
                .iter()
                .fold(v[7], |a, &b| a.wrapping_add(b));
            let s0 = v[0].rotate_right(2) ^ v[0].rotate_right(13) ^ v[0].rotate_right(22);
            let majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
            v.rotate_right(1);
            v[4] = v[4].wrapping_add(t1);
            v[0] = t1.wrapping_add(s0).wrapping_add(majority);
        }
        state
            .iter_mut()
            .zip(v)
            .for_each(|(s, v)| *s = s.wrapping_add(v));
    }
    state.iter().map(|word| format!("{word:08x}")).collect()
}

#[test]
fn sha256_matches_the_standards_example() {
    assert_eq!(
        sha256_hex(b"abc"),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}
