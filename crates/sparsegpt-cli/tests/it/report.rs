//! The page about a pruning run.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use crate::common::{calibration, entries, fail, model, succeed, text};
use roxmltree::{Document, Node, ParsingOptions};
use serde_json::{Value, json};

/// Prunes the bundled model, quickly.
fn prune(out: &Path, more: &[&str]) {
    let (model, calibration) = (model(), calibration());
    let mut args = vec!["prune", text(&model), "--calibration", text(&calibration)];
    args.extend(["--samples", "6", "--sequence-length", "64", "--quiet"]);
    args.extend(["--out", text(out)]);
    args.extend(more);
    succeed(&args);
}

/// Parses a page, which must be well-formed, and must hold nothing that loads or runs anything.
fn parse(page: &str) -> Document<'_> {
    let body = page.strip_prefix("<!DOCTYPE html>\n").unwrap();
    let document = Document::parse_with_options(body, ParsingOptions::default())
        .unwrap_or_else(|error| panic!("{error}: {page}"));
    const ELEMENTS: [&str; 37] = [
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "main",
        "section",
        "h1",
        "h2",
        "h3",
        "p",
        "div",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "dl",
        "dt",
        "dd",
        "ul",
        "li",
        "figure",
        "figcaption",
        "svg",
        "g",
        "text",
        "line",
        "rect",
        "circle",
        "polyline",
        "blockquote",
        "span",
        "details",
    ];
    for node in document.descendants().filter(Node::is_element) {
        let name = node.tag_name().name();
        assert!(ELEMENTS.contains(&name) || name == "summary", "{name}");
        for attribute in node.attributes() {
            let name = attribute.name();
            let loads = ["src", "href", "data", "action", "style"].contains(&name);
            assert!(!loads && !name.starts_with("on"), "{name}");
        }
    }
    let style = texts(&document, "style").join("");
    assert!(!style.contains("url(") && !style.contains("@import"));
    document
}

fn named<'a, 'i>(
    document: &'a Document<'i>,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'i>> {
    document
        .descendants()
        .filter(move |node| node.has_tag_name(name))
}

fn whole_text(node: Node<'_, '_>) -> String {
    let pieces = node.descendants().filter(Node::is_text);
    pieces.filter_map(|piece| piece.text()).collect()
}

fn texts(document: &Document<'_>, name: &'static str) -> Vec<String> {
    named(document, name).map(whole_text).collect()
}

/// Charts with their titles.
fn figure<'a, 'i>(document: &'a Document<'i>, title: &str) -> Node<'a, 'i> {
    named(document, "figure")
        .find(|figure| whole_text(*figure).starts_with(title))
        .unwrap_or_else(|| panic!("no figure {title}"))
}

fn count(node: Node<'_, '_>, name: &str) -> usize {
    node.descendants()
        .filter(|node| node.has_tag_name(name))
        .count()
}

fn saved(run: &Path) -> (PathBuf, Value) {
    let path = run.join("sparsegpt_report.json");
    let report = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    (path, report)
}

#[test]
fn a_page_shows_every_layer_of_a_finished_run() {
    let folder = tempfile::tempdir().unwrap();
    let (run, page) = (folder.path().join("half"), folder.path().join("page.html"));
    prune(&run, &["--pattern", "50%", "--held-out", "2"]);
    succeed(&["report", text(&run), "--out", text(&page)]);
    let (saved_at, saved) = saved(&run);
    let layers = saved["layers"].as_array().unwrap();

    let html = fs::read_to_string(&page).unwrap();
    let document = parse(&html);
    let cells = texts(&document, "td");
    for layer in layers {
        let name = layer["layer"].as_str().unwrap();
        assert!(cells.iter().any(|cell| cell == name), "{name}");
        let error = format!("{:.3e}", layer["relative_error"].as_f64().unwrap());
        let point = format!("{name}: {error}");
        let errors = figure(&document, "error by block");
        let mut titles = errors
            .descendants()
            .filter(|node| node.has_tag_name("title"));
        assert!(titles.any(|title| whole_text(title) == point), "{point}");
    }
    for chart in ["error by block", "error on the seq", "zeros of each"] {
        let chart = figure(&document, chart);
        assert_eq!(count(chart, "circle"), layers.len());
    }
    assert!(count(figure(&document, "seconds of the run"), "rect") >= 4);
    assert!(count(figure(&document, "seconds of solving"), "rect") >= 4);
    let facts = texts(&document, "dd").join("\n");
    for fact in [
        "--pattern 50%",
        "assets/jargon",
        "calibration.txt",
        saved["calibration"]["fingerprint"].as_str().unwrap(),
        env!("CARGO_PKG_VERSION"),
    ] {
        assert!(facts.contains(fact), "{fact}: {facts}");
    }
    // A report that was moved away from its weights will do.
    let moved = folder.path().join("moved.json");
    fs::copy(saved_at, &moved).unwrap();
    succeed(&["report", text(&moved), "--out", text(&page)]);
    let again = fs::read_to_string(&page).unwrap();
    assert_eq!(again.replace("moved.json", "half"), html);
    assert_eq!(entries(folder.path()), ["half", "moved.json", "page.html"]);
}

#[test]
fn models_are_measured_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    let (run, page) = (folder.path().join("runs"), folder.path().join("page.html"));
    prune(&run, &["--pattern", "50%", "--pattern", "2:4"]);
    let (dense, held_out) = (model(), model().join("heldout.txt"));
    let prompt = "A <b>hacker</b> & \"friend\"</blockquote><script>";
    let outcome = succeed(&[
        "report",
        text(&run),
        "--out",
        text(&page),
        "--dense",
        text(&dense),
        "--text",
        text(&held_out),
        "--sequence-length",
        "64",
        "--limit",
        "4",
        "--prompt",
        prompt,
        "--max-new-tokens",
        "8",
        "--json",
    ])
    .json();
    let html = fs::read_to_string(&page).unwrap();
    let document = parse(&html);
    let cells = texts(&document, "td");
    let quotes = texts(&document, "blockquote");
    let measured = outcome["measured"].as_array().unwrap();
    let models = [dense, run.join("2-4"), run.join("50pct")];
    assert_eq!(measured.len(), models.len());
    for ((of, name), path) in measured.iter().zip(["dense", "2-4", "50pct"]).zip(&models) {
        assert_eq!(of["name"], name);
        let eval = succeed(&[
            "eval",
            text(path),
            "--text",
            text(&held_out),
            "--sequence-length",
            "64",
            "--limit",
            "4",
            "--json",
        ])
        .json();
        assert_eq!(of["perplexity"]["perplexity"], eval["perplexity"]);
        let number = |key: &str| eval[key].as_f64().unwrap();
        let cell = format!(
            "{:.2} ± {:.2}",
            number("perplexity"),
            number("standard_error")
        );
        assert!(cells.contains(&cell), "{cell}");
        let sample = of["samples"][0]["text"].as_str().unwrap();
        assert!(
            quotes.contains(&format!("{prompt}{sample}")),
            "{sample}: {quotes:?}"
        );
    }
    let chart = figure(&document, text(&held_out));
    assert_eq!(count(chart, "rect"), models.len());
}

#[test]
fn what_a_report_says_is_text_and_never_markup() {
    let folder = tempfile::tempdir().unwrap();
    let (run, page) = (folder.path().join("run"), folder.path().join("page.html"));
    prune(&run, &["--method", "magnitude", "--pattern", "2:4"]);
    let (path, mut report) = saved(&run);
    let bad = "</td><img src=x onerror=\"alert('1')\">&amp;\u{1}.3.]]>";
    let shown = bad.replace('\u{1}', "\u{fffd}");
    report["layers"][0]["layer"] = json!(bad);
    report["layers"][1]["method"] = json!(bad);
    report["skipped"] = json!([bad]);
    report["model"] = json!(bad);
    report["device"] = json!(bad);
    report["settings"]["pattern"] = json!([bad]);
    report["calibration"] = json!({
        "source": bad, "seed": 1, "sequences": 2, "sequence_length": 3, "tokens_available": 4, "fingerprint": bad
    });
    fs::write(&path, report.to_string()).unwrap();
    succeed(&["report", text(&run), "--out", text(&page)]);
    let html = fs::read_to_string(&page).unwrap();
    let document = parse(&html);
    for element in ["td", "dd", "li"] {
        let found = texts(&document, element);
        assert!(
            found.iter().any(|text| text.contains(&shown)),
            "{element}: {found:?}"
        );
    }
    // Magnitude knows no errors.
    assert!(html.contains("No error was measured"));
}

#[test]
fn mistakes_are_named_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (run, page) = (folder.path().join("run"), folder.path().join("page.html"));
    prune(&run, &["--method", "magnitude", "--pattern", "50%"]);
    let (path, report) = saved(&run);
    let of = |run: &Path, more: &[&str], code: i32, message: &str| {
        let mut args = vec!["report", text(run), "--out", text(&page)];
        args.extend(more);
        fail(&args, code, message);
        assert!(!page.exists());
    };
    of(&model(), &[], 3, "sparsegpt_report.json");
    of(&folder.path().join("none"), &[], 3, "cannot read");
    of(&path, &["--prompt", "A"], 2, "no weights to measure");
    of(&run, &["--limit", "3"], 2, "--text");
    let tampered = folder.path().join("tampered.json");
    for (key, value, message) in [
        ("zeros", json!(u64::MAX), "as many zeros as weights"),
        ("rows", json!(u64::MAX), "as many zeros as weights"),
        ("rows", json!(0), "as many zeros as weights"),
        ("rows", json!(1_000_000), "sums of its layers"),
        ("layer", json!(3), "expected the report"),
    ] {
        let mut report = report.clone();
        report["layers"][0][key] = value;
        fs::write(&tampered, report.to_string()).unwrap();
        of(&tampered, &[], 3, message);
    }
    let whole = report.to_string();
    fs::write(&tampered, &whole[..whole.len() / 2]).unwrap();
    of(&tampered, &[], 3, "expected the report");
    assert_eq!(entries(folder.path()), ["run", "tampered.json"]);
}
