#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::data_type::{ByteArray, ByteArrayType};
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use tempfile::TempDir;

use super::*;
use crate::checkpoint::{Checkpoint, fixtures};
use crate::evaluate::token_nll;

const HARNESS: PromptRecipe = PromptRecipe::Harness;

fn file(folder: &TempDir, name: &str, content: &str) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    path
}

/// The first question of a file with this content: context and text of each choice, and the right one.
fn first(task: Task, recipe: PromptRecipe, name: &str, content: &str) -> (Vec<[String; 2]>, usize) {
    let folder = TempDir::new().unwrap();
    let path = file(&folder, name, content);
    let question = questions(task, recipe, &path, None).unwrap().remove(0);
    for choice in &question.choices {
        assert!(choice.continuation.starts_with(' '), "{choice:?}");
    }
    let texts = question
        .choices
        .into_iter()
        .map(|choice| [choice.context, choice.continuation]);
    (texts.collect(), question.gold)
}

fn same_context(context: &str, continuations: &[&str]) -> Vec<[String; 2]> {
    continuations
        .iter()
        .map(|text| [context.to_owned(), (*text).to_owned()])
        .collect()
}

#[test]
fn every_form_of_a_task_gives_its_prompt() {
    use Task::*;
    let arc = "Question: Why?\nAnswer:";
    let boolq = "Water is wet.\nQuestion: is water wet?\nAnswer:";
    let hellaswag = "Cooking: He cuts. Then he fries";
    let story = "A. B. C. D.";
    for (task, name, content, context, continuations, gold) in [
        (
            Piqa,
            "piqa.jsonl",
            r#"{"goal": "Go?", "sol1": "walk", "sol2": "run ", "label": 1}"#,
            "Question: Go?\nAnswer:",
            &[" walk", " run "][..],
            1,
        ),
        (
            ArcEasy,
            "query.jsonl",
            r#"{"query": "Question: Why?", "choices": ["x", "y"], "gold": 1}"#,
            arc,
            &[" x", " y"],
            1,
        ),
        (
            ArcChallenge,
            "lists.jsonl",
            r#"{"question": "Why?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}"#,
            arc,
            &[" x", " y"],
            1,
        ),
        (
            ArcEasy,
            "authors.jsonl",
            r#"{"question": {"stem": "Why?", "choices": [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}]}, "answerKey": "A"}"#,
            arc,
            &[" x", " y"],
            0,
        ),
        (
            OpenBookQa,
            "lists.json",
            r#"[{"question_stem": "Fog is", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": " B"}]"#,
            "Fog is",
            &[" a", " b"],
            1,
        ),
        (
            OpenBookQa,
            "query.jsonl",
            r#"{"query": "Fog is", "choices": ["a", "b"], "gold": 0}"#,
            "Fog is",
            &[" a", " b"],
            0,
        ),
        (
            BoolQ,
            "authors.jsonl",
            r#"{"passage": "Water is wet.", "question": "is water wet", "answer": true}"#,
            boolq,
            &[" no", " yes"],
            1,
        ),
        (
            BoolQ,
            "glue.jsonl",
            r#"{"passage": "Water is wet.", "question": "is water wet", "label": 0}"#,
            boolq,
            &[" no", " yes"],
            0,
        ),
        (
            BoolQ,
            "query.jsonl",
            r#"{"query": "Passage: Water is wet.\nQuestion: is water wet?", "choices": ["no", "yes"], "gold": 1}"#,
            boolq,
            &[" no", " yes"],
            1,
        ),
        (
            HellaSwag,
            "authors.jsonl",
            r#"{"activity_label": "Cooking", "ctx_a": "He cuts.", "ctx_b": "then He fries", "endings": ["eggs [x] now", "[a\nb]", "up [title] Next", "d"], "label": "2"}"#,
            hellaswag,
            &[" eggs now", " [a\nb]", " up.  Next", " d"],
            2,
        ),
        (
            HellaSwag,
            "lines.txt",
            "Cooking: He cuts. Then he fries\n3\na\nb\nc\nd\n",
            hellaswag,
            &[" a", " b", " c", " d"],
            3,
        ),
        (
            StoryCloze,
            "cloze_test_val.csv",
            "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\nid,A.,B.,C.,D.,\"E, \"\"f\"\".\",G.,2\n",
            story,
            &[" E, \"f\".", " G."],
            1,
        ),
        (
            StoryCloze,
            "story.jsonl",
            r#"{"input_sentence_1": "A.", "input_sentence_2": "B.", "input_sentence_3": "C.", "input_sentence_4": "D.", "sentence_quiz1": "E.", "sentence_quiz2": "G.", "answer_right_ending": 1}"#,
            story,
            &[" E.", " G."],
            0,
        ),
        (
            Lambada,
            "lambada.jsonl",
            r#"{"text": "one two  three\nfour"}"#,
            "one two ",
            &[" three\nfour"],
            0,
        ),
        (
            Lambada,
            "parted.jsonl",
            r#"{"context": "one two", "continuation": "three"}"#,
            "one two",
            &[" three"],
            0,
        ),
    ] {
        let found = first(task, HARNESS, name, content);
        let continuations: Vec<String> = continuations
            .iter()
            // The harness's cleaning leaves one blank where there were two.
            .map(|text| text.replace(".  N", ". N"))
            .collect();
        let continuations: Vec<&str> = continuations.iter().map(String::as_str).collect();
        assert_eq!(
            found,
            (same_context(context, &continuations), gold),
            "{task} {name}"
        );
    }
}

#[test]
fn winogrande_scores_the_same_text_behind_both_beginnings() {
    let pairs = |of: [&str; 2], rest: &str| of.map(|of| [of.to_owned(), rest.to_owned()]).to_vec();
    let authors = r#"{"sentence": "Ann hit Eve so _ ran _ off.", "option1": "Ann", "option2": "Eve", "answer": "2"}"#;
    assert_eq!(
        first(Task::WinoGrande, HARNESS, "dev.jsonl", authors),
        (
            pairs(["Ann hit Eve so Ann", "Ann hit Eve so Eve"], " ran _ off."),
            1
        )
    );
    let parted = r#"{"context_options": ["so Ann", "so Eve"], "continuation": "ran.", "gold": 0}"#;
    assert_eq!(
        first(Task::WinoGrande, HARNESS, "dev.jsonl", parted),
        (pairs(["so Ann", "so Eve"], " ran."), 0)
    );
}

#[test]
fn the_papers_lambada_has_a_line_end_before_and_plain_quotes() {
    let text = "{\"text\": \"\u{201c}Hi,\u{201d} ``he'' said to  ''them''\"}";
    let (found, _) = first(Task::Lambada, PromptRecipe::Paper, "lambada.jsonl", text);
    // Not in what is scored: that is the file's own word.
    assert_eq!(
        found,
        same_context("\n\"Hi,\" \"he\" said to ", &[" ''them''"])
    );
}

#[test]
fn characters_are_those_of_the_choice_without_the_blank() {
    let folder = TempDir::new().unwrap();
    let path = file(
        &folder,
        "arc.jsonl",
        r#"{"query": "q", "choices": ["é", "four"], "gold": 0}"#,
    );
    let found = questions(Task::ArcEasy, HARNESS, &path, None).unwrap();
    let characters: Vec<usize> = found[0]
        .choices
        .iter()
        .map(|choice| choice.characters)
        .collect();
    assert_eq!(characters, [1, 4]);
    assert_eq!(found[0].choices[0].context, "Question: q\nAnswer:");
}

#[test]
fn piqa_takes_its_answers_from_the_file_beside() {
    let folder = TempDir::new().unwrap();
    let line = r#"{"goal": "g", "sol1": "a", "sol2": "b"}"#;
    let path = file(
        &folder,
        "valid.jsonl",
        &format!("{line}\n\n{line}\n{line}\n"),
    );
    let refused = |words: &str| {
        let error = questions(Task::Piqa, HARNESS, &path, None)
            .unwrap_err()
            .to_string();
        assert!(error.contains(words), "{error}");
    };
    refused("valid-labels.lst");
    let labels = file(&folder, "valid-labels.lst", "1\n0\n");
    refused("found 2 lines");
    fs::write(&labels, "1\n0\none\n").unwrap();
    refused("line 3: expected 0 or 1, found \"one\"");
    fs::write(&labels, "1\n0\n2\n").unwrap();
    refused("line 4: field \"label\": expected a number from 0 to 1, found 2");
    fs::write(&labels, "1\n0\n1\n").unwrap();
    let found = questions(Task::Piqa, HARNESS, &path, None).unwrap();
    let golds: Vec<usize> = found.iter().map(|question| question.gold).collect();
    assert_eq!(golds, [1, 0, 1]);
    assert_eq!(found[2].place, "line 4");
    assert_eq!(
        questions(Task::Piqa, HARNESS, &path, Some(2)).unwrap(),
        found[..2]
    );
}

/// Values of a parquet column, with their levels of definition and repetition.
type Column<'a> = (&'a [&'a str], &'a [i16], Option<&'a [i16]>);

#[test]
fn parquet_rows_with_lists_are_read() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("test.parquet");
    let list = |name: &str| {
        format!(
            "OPTIONAL group {name} (LIST) {{ REPEATED group list {{ OPTIONAL BYTE_ARRAY element (UTF8); }} }}"
        )
    };
    let schema = format!(
        "message rows {{ OPTIONAL BYTE_ARRAY question (UTF8); OPTIONAL group choices {{ {} {} }} OPTIONAL BYTE_ARRAY answerKey (UTF8); }}",
        list("text"),
        list("label")
    );
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let mut writer =
        SerializedFileWriter::new(File::create(&path).unwrap(), schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let (whole, within) = ([1_i16, 1], [4_i16; 5]);
    let columns: [Column<'_>; 4] = [
        (&["Why?", "How?"], &whole, None),
        (&["x", "y", "u", "v", "w"], &within, Some(&[0, 1, 0, 1, 1])),
        (&["A", "B", "A", "B", "C"], &within, Some(&[0, 1, 0, 1, 1])),
        (&["B", "C"], &whole, None),
    ];
    for (texts, levels, repeats) in columns {
        let mut column = group.next_column().unwrap().unwrap();
        let values: Vec<ByteArray> = texts.iter().map(|text| ByteArray::from(*text)).collect();
        column
            .typed::<ByteArrayType>()
            .write_batch(&values, Some(levels), repeats)
            .unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();

    let found = questions(Task::ArcEasy, HARNESS, &path, None).unwrap();
    let shape: Vec<(usize, usize)> = found
        .iter()
        .map(|question| (question.choices.len(), question.gold))
        .collect();
    assert_eq!(shape, [(2, 1), (3, 2)]);
    assert_eq!(found[1].choices[2].context, "Question: How?\nAnswer:");
    assert_eq!(found[1].choices[2].continuation, " w");
    assert_eq!(found[1].place, "row 2");
    let refused = questions(Task::Piqa, HARNESS, &path, None)
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("valid-labels.lst") || refused.contains("label"),
        "{refused}"
    );
    let mut damaged = fs::read(&path).unwrap();
    damaged.truncate(damaged.len() / 2);
    fs::write(&path, damaged).unwrap();
    assert!(questions(Task::ArcEasy, HARNESS, &path, None).is_err());
}

#[test]
fn mistakes_are_named_by_file_record_and_field() {
    use Task::*;
    let good = r#"{"query": "q", "choices": ["a", "b"], "gold": 0}"#;
    for (task, name, content, words) in [
        (ArcEasy, "a.jsonl", format!("{good}\n{{\"query\": \"q\", \"choices\": [\"a\", \"b\"]}}"), "a.jsonl: line 2: expected the field \"gold\", found the fields [\"choices\", \"query\"]"),
        (ArcEasy, "b.jsonl", format!("{good}\n\n{{\"query\""), "b.jsonl: line 3: expected one JSON object"),
        (ArcEasy, "c.jsonl", "[]".to_owned(), "found no record"),
        (ArcEasy, "d.json", "[1]".to_owned(), "record 1: expected a JSON object, found a number"),
        (ArcEasy, "e.jsonl", r#"{"query": 1, "choices": ["a", "b"], "gold": 0}"#.to_owned(), "line 1: field \"query\": expected a string, found 1"),
        (ArcEasy, "f.jsonl", r#"{"query": "q", "choices": ["a", 2], "gold": 0}"#.to_owned(), "field \"choices\": expected a list of strings, found an array"),
        (ArcEasy, "g.jsonl", r#"{"query": "q", "choices": ["a", "b"], "gold": 2}"#.to_owned(), "field \"gold\": expected a number from 0 to 1, found 2"),
        (ArcEasy, "h.jsonl", r#"{"query": "q", "choices": [], "gold": 0}"#.to_owned(), "at least two choices, found 0"),
        (ArcEasy, "i.jsonl", r#"{"query": "q", "choices": ["a", ""], "gold": 0}"#.to_owned(), "found none for choice 1"),
        (ArcEasy, "j.jsonl", r#"{"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"}"#.to_owned(), "field \"answerKey\": expected one of the choices' labels [\"A\", \"B\"], found \"C\""),
        (ArcEasy, "k.jsonl", r#"{"question": {"stem": "q", "choices": [{"text": "a"}]}, "answerKey": "C"}"#.to_owned(), "line 1: \"question\": \"choices\", item 0: expected the field \"label\""),
        (ArcEasy, "l.txt", "text".to_owned(), "expected JSON lines"),
        (Lambada, "m.jsonl", r#"{"text": "word"}"#.to_owned(), "line 1: expected a text of several words"),
        (Lambada, "n.jsonl", r#"{"text": "word "}"#.to_owned(), "line 1: expected a text of several words"),
        (WinoGrande, "o.jsonl", r#"{"sentence": "no blank", "option1": "a", "option2": "b", "answer": "1"}"#.to_owned(), "field \"sentence\": expected a blank"),
        (WinoGrande, "p.jsonl", r#"{"sentence": "_", "option1": "a", "option2": "b", "answer": "3"}"#.to_owned(), "field \"answer\": expected a number from 1 to 2, found \"3\""),
        (HellaSwag, "q.txt", "s\n0\na\nb\nc\nd\ns\n1\na\n".to_owned(), "line 7: expected six lines a question, found 3 at the end"),
        (HellaSwag, "r.txt", "s\n\na\nb\nc\nd\n".to_owned(), "line 2: expected the gold, found an empty line"),
        (HellaSwag, "s.txt", "s\n4\na\nb\nc\nd\n".to_owned(), "line 1: field \"gold\": expected a number from 0 to 3, found \"4\""),
        (StoryCloze, "t.csv", "a,b\n1,2,3\n".to_owned(), "t.csv: line 2: expected 2 fields as in the first line, found 3"),
        (StoryCloze, "u.csv", "InputSentence1\nA.\n".to_owned(), "line 2: expected the field \"InputSentence2\""),
        (BoolQ, "v.jsonl", r#"{"passage": "p", "question": "q", "answer": "maybe"}"#.to_owned(), "field \"answer\": expected a number from 0 to 1, found \"maybe\""),
        (Piqa, "w.parquet", "PAR1 and no more".to_owned(), "w.parquet: the parquet file"),
    ] {
        let folder = TempDir::new().unwrap();
        let path = file(&folder, name, &content);
        let error = questions(task, HARNESS, &path, None).unwrap_err().to_string();
        assert!(error.contains(words), "{name}: expected {words:?} in {error:?}");
    }
    assert!(questions(ArcEasy, HARNESS, Path::new("missing.jsonl"), None).is_err());
}

fn bundled() -> (Transformer, Tokenizer) {
    let checkpoint = Checkpoint::open(&fixtures::bundled()).unwrap();
    (
        Transformer::load(checkpoint.config(), &checkpoint.tensors()).unwrap(),
        checkpoint.tokenizer().unwrap(),
    )
}

/// The likelihood of a request by itself, from the losses of one whole sequence.
fn alone(model: &Transformer, request: &Request) -> f64 {
    let losses = token_nll(model, &request.tokens).unwrap();
    -losses[request.start - 1..].iter().sum::<f64>()
}

/// Whether each scored token has the highest logit in a pass over the sequence.
fn alone_greedy(model: &Transformer, request: &Request) -> bool {
    let inputs = &request.tokens[..request.tokens.len() - 1];
    let logits = model.forward(&[inputs]).unwrap();
    let logits: Vec<Vec<f32>> = logits.squeeze(0).unwrap().to_vec2().unwrap();
    (request.start..request.tokens.len()).all(|at| {
        let own = request.tokens[at] as usize;
        let row = &logits[at - 1];
        row.iter().all(|&other| other <= row[own])
    })
}

/// Questions of every shape: long and short shared beginnings and none, one request and many, endings of all lengths, one
/// that is the beginning of another, and twice the same.
fn shapes(model: &Transformer) -> Vec<Vec<Request>> {
    let request = |tokens: Vec<u32>, start| Request { tokens, start };
    let text = |seed: u32, length: u32| (0..length).map(move |at| (seed * 37 + at * 101) % 1024);
    let mut questions = Vec::new();
    for seed in 0..12 {
        let context: Vec<u32> = text(seed, 5 + seed % 5).collect();
        let start = context.len();
        let with = |seed, length| [context.clone(), text(seed, length).collect()].concat();
        questions.push(vec![
            request(with(100 + seed, 4), start),
            request(with(100 + seed, 7), start),
            request(with(200 + seed, 1), start),
            request(with(300 + seed, 1 + seed), start - seed as usize % 2),
            request(with(200 + seed, 1), start),
        ]);
        questions.push(vec![
            request(text(seed, 6).collect(), 3),
            request(text(seed + 1, 9).collect(), 4),
        ]);
        // One in which the model itself goes on.
        let mut greedy = context.clone();
        for _ in 0..3 {
            let logits = model.next(&greedy, &mut model.cache()).unwrap();
            let likeliest = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
            greedy.push(likeliest.unwrap() as u32);
        }
        questions.push(vec![request(greedy, start)]);
    }
    questions
}

#[test]
fn scores_are_those_of_every_sequence_by_itself() {
    let (model, _) = bundled();
    let questions = shapes(&model);
    let mut told = Vec::new();
    let found = likelihoods(&model, &questions, &mut |done, of| {
        told.push(done);
        assert_eq!(of, questions.len());
        true
    })
    .unwrap();
    assert_eq!(told.last(), Some(&questions.len()));
    assert!(told.is_sorted());
    let mut greedy = 0;
    for (requests, found) in questions.iter().zip(&found) {
        for (request, found) in requests.iter().zip(found) {
            let expected = alone(&model, request);
            assert!((found.log - expected).abs() < 1e-3, "{found:?} {expected}");
            assert_eq!(found.greedy, alone_greedy(&model, request));
            greedy += usize::from(found.greedy);
        }
    }
    assert!(greedy >= 12, "{greedy}");
}

#[test]
fn what_else_is_asked_and_in_which_order_changes_no_score() {
    let (model, _) = bundled();
    let questions = shapes(&model);
    let score =
        |questions: &[Vec<Request>]| likelihoods(&model, questions, &mut |_, _| true).unwrap();
    let together = score(&questions);
    let reversed: Vec<Vec<Request>> = questions.iter().rev().cloned().collect();
    let reversed = score(&reversed);
    for (at, (together, reversed)) in together.iter().zip(reversed.iter().rev()).enumerate() {
        let by_itself = score(&questions[at..=at]).remove(0);
        for ((a, b), c) in together.iter().zip(reversed).zip(&by_itself) {
            assert!(
                (a.log - b.log).abs() < 1e-4 && (a.log - c.log).abs() < 1e-4,
                "{a:?} {b:?} {c:?}"
            );
        }
    }
}

fn question(place: &str, choices: &[[&str; 2]], gold: usize) -> Question {
    let choice = |[context, continuation]: &[&str; 2]| Choice {
        context: (*context).to_owned(),
        continuation: (*continuation).to_owned(),
        characters: continuation.chars().count() - 1,
    };
    Question {
        place: place.to_owned(),
        choices: choices.iter().map(choice).collect(),
        gold,
    }
}

#[test]
fn accuracies_are_those_of_the_written_formulas() {
    let (model, tokenizer) = bundled();
    let contexts = [
        "A hacker is a",
        "The system",
        "Foo: a metasyntactic",
        "To crash is",
    ];
    let endings = [
        " person who enjoys exploring",
        " of",
        " variable",
        " to fail suddenly",
    ];
    let questions: Vec<Question> = contexts
        .iter()
        .enumerate()
        .map(|(at, context)| {
            let choices = endings.map(|ending| [*context, ending]);
            question(&format!("line {}", at + 1), &choices, at)
        })
        .collect();
    let result = evaluate(
        &model,
        &tokenizer,
        Task::ArcEasy,
        HARNESS,
        &questions,
        &mut |_, _| true,
    )
    .unwrap();
    let (mut right, mut right_norm) = (0, 0);
    for (at, decision) in result.decisions.iter().enumerate() {
        let scores: Vec<f64> = endings
            .iter()
            .map(|ending| {
                let tokens = tokenizer
                    .encode(&format!("{}{ending}", contexts[at]))
                    .unwrap();
                let start = tokenizer.encode(contexts[at]).unwrap().len();
                alone(&model, &Request { tokens, start })
            })
            .collect();
        for (found, expected) in decision.log_likelihoods.iter().zip(&scores) {
            assert!((found - expected).abs() < 1e-3);
        }
        let best = |score: &dyn Fn(usize) -> f64| {
            (0..4)
                .max_by(|&a, &b| score(a).total_cmp(&score(b)))
                .unwrap()
        };
        let (plain, norm) = (
            best(&|choice| scores[choice]),
            best(&|choice| scores[choice] / (endings[choice].len() - 1) as f64),
        );
        assert_eq!((decision.chosen, decision.chosen_norm), (plain, norm));
        assert_eq!(decision.correct, plain == at);
        right += usize::from(plain == at);
        right_norm += usize::from(norm == at);
    }
    assert_eq!(result.questions, 4);
    assert_eq!(result.acc.value, right as f64 / 4.0);
    assert_eq!(result.acc_norm.unwrap().value, right_norm as f64 / 4.0);
    assert_eq!(result.perplexity, None);
    // √(p(1 − p)/(n − 1)) for shares.
    let error = (result.acc.value * (1.0 - result.acc.value) / 3.0).sqrt();
    assert!((result.acc.standard_error - error).abs() < 1e-12);
    assert_eq!(result.quoted(), result.acc);
    let paper = TaskResult {
        recipe: PromptRecipe::Paper,
        ..result.clone()
    };
    assert_eq!(Some(paper.quoted()), result.acc_norm);

    let plain = evaluate(
        &model,
        &tokenizer,
        Task::BoolQ,
        HARNESS,
        &questions,
        &mut |_, _| true,
    )
    .unwrap();
    assert_eq!((plain.acc_norm, plain.acc), (None, result.acc));
}

#[test]
fn the_first_of_the_highest_is_chosen() {
    assert_eq!(highest(&[-3.0, -1.0, -1.0]), 1);
}

#[test]
fn lambada_is_right_where_the_word_is_the_likeliest() {
    let (model, tokenizer) = bundled();
    let context = "A hacker is a";
    let mut tokens = tokenizer.encode(context).unwrap();
    let before = tokens.len();
    let logits = model.next(&tokens, &mut model.cache()).unwrap();
    let likeliest = (0..logits.len())
        .max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
        .unwrap();
    tokens.push(likeliest as u32);
    let text = tokenizer.decode(&tokens).unwrap();
    let word = text.strip_prefix(context).unwrap();
    // Otherwise the word is another one when it is encoded with its context.
    assert_eq!(tokenizer.encode(&text).unwrap(), tokens);
    let questions = [
        question("line 1", &[[context, word]], 0),
        question("line 2", &[[context, " zebra"]], 0),
    ];
    let result = evaluate(
        &model,
        &tokenizer,
        Task::Lambada,
        HARNESS,
        &questions,
        &mut |_, _| true,
    )
    .unwrap();
    let right: Vec<bool> = result
        .decisions
        .iter()
        .map(|decision| decision.correct)
        .collect();
    assert_eq!(right, [true, false]);
    assert_eq!((result.acc.value, result.acc_norm), (0.5, None));
    let scores: Vec<f64> = result
        .decisions
        .iter()
        .map(|decision| decision.log_likelihoods[0])
        .collect();
    let expected = alone(
        &model,
        &Request {
            tokens,
            start: before,
        },
    );
    assert!((scores[0] - expected).abs() < 1e-4);
    let perplexity = result.perplexity.unwrap();
    assert!((perplexity.value / (-(scores[0] + scores[1]) / 2.0).exp() - 1.0).abs() < 1e-12);
    // Two values a and b have the standard error |a − b| / 2.
    let error = perplexity.value * (scores[0] - scores[1]).abs() / 2.0;
    assert!((perplexity.standard_error / error - 1.0).abs() < 1e-12);
}

#[test]
fn recipes_part_the_tokens_in_their_own_ways() {
    let (_, tokenizer) = bundled();
    let unfit = |expected: &str, found: String| Error::data("question", expected, found);
    let of = |recipe, context: &str, continuation: &str, longest| {
        let choice = Choice {
            context: context.to_owned(),
            continuation: continuation.to_owned(),
            characters: 1,
        };
        request(&tokenizer, recipe, &choice, longest, &unfit)
    };
    let whole = tokenizer.encode("A hacker is \n a person").unwrap();
    let blank_behind = of(HARNESS, "A hacker is \n", " a person", 256).unwrap();
    assert_eq!(blank_behind.tokens, whole);
    assert_eq!(
        blank_behind.start,
        tokenizer.encode("A hacker is").unwrap().len()
    );
    let parts = [
        tokenizer.encode_plain("A hacker is \n").unwrap(),
        tokenizer.encode_plain(" a person").unwrap(),
    ];
    let paper = of(PromptRecipe::Paper, "A hacker is \n", " a person", 256).unwrap();
    assert_eq!(paper.start, parts[0].len());
    assert_eq!(paper.tokens, parts.concat());

    let bare = of(HARNESS, "", " a person", 256).unwrap();
    let first = tokenizer
        .bos()
        .or_else(|| tokenizer.eos().first().copied())
        .unwrap();
    assert_eq!((bare.start, bare.tokens[0]), (1, first));
    assert_eq!(bare.tokens[1..], parts[1]);

    // The model reads all tokens but the last.
    let cut = of(HARNESS, "A hacker is \n", " a person", whole.len() - 3).unwrap();
    assert_eq!(cut.tokens, whole[2..]);
    assert_eq!(cut.start, blank_behind.start - 2);
    let scored = whole.len() - blank_behind.start;
    assert_eq!(
        of(HARNESS, "A hacker is \n", " a person", scored)
            .unwrap()
            .start,
        1
    );
    for (context, continuation, longest, words) in [
        ("A hacker is \n", " a person", scored - 1, "positions"),
        ("A hacker", "", 256, "tokens of its own"),
    ] {
        let error = of(HARNESS, context, continuation, longest)
            .unwrap_err()
            .to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn what_cannot_be_asked_is_an_error() {
    let (model, tokenizer) = bundled();
    let ask = |questions: &[Question], go_on: bool| {
        evaluate(
            &model,
            &tokenizer,
            Task::Piqa,
            HARNESS,
            questions,
            &mut |_, _| go_on,
        )
    };
    let fine = question("line 1", &[["A hacker", " is"], ["A hacker", " was"]], 0);
    assert!(ask(std::slice::from_ref(&fine), true).is_ok());
    assert!(matches!(
        ask(std::slice::from_ref(&fine), false),
        Err(Error::Stopped)
    ));
    assert!(ask(&[], true).is_err());
    let long = " person".repeat(300);
    let unfit = question("line 2", &[["A hacker", " is"], ["A hacker", &long]], 0);
    let error = ask(&[fine, unfit], true).unwrap_err().to_string();
    assert!(
        error.contains("piqa, line 2") && error.contains("256 positions"),
        "{error}"
    );
}
