//! From the records of a task's file to questions: one function a task, for the forms in which its data go round.
//!
//! Beside the authors' and HuggingFace's forms, the tasks with choices are read as `query`, `choices` and `gold` (from 0), the
//! form of llm-foundry, whose prompts stand in the file up to the answer.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::record::{Record, read};
use super::{PromptRecipe, Task};
use crate::text::{Lines, TextFormat, open};
use crate::{Error, Result};

/// One question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Where in its file it stands, as in `line 3`.
    pub place: String,
    /// What is scored; one for LAMBADA, where the answer is right if it is the likeliest text.
    pub choices: Vec<Choice>,
    /// The right choice, from 0.
    pub gold: usize,
}

/// One way to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The text before.
    pub context: String,
    /// The text whose likelihood counts, with the blank before it.
    pub continuation: String,
    /// Characters that the log-likelihood is divided by where it is normalized.
    pub characters: usize,
}

/// The questions of a task's file, the first `limit` ones if there is a limit.
///
/// Read are JSON lines, a JSON array, parquet and CSV, for [`Task::HellaSwag`] also text with six lines a question (scene,
/// number of the right ending from 0, four endings). For [`Task::Piqa`] the right answers may lie beside `NAME.jsonl` in
/// `NAME-labels.lst`.
///
/// # Errors
/// If the file cannot be read, has no question, or a record lacks a field or has an unfit one; the error tells file, record
/// and field.
pub fn questions(
    task: Task,
    recipe: PromptRecipe,
    path: &Path,
    limit: Option<usize>,
) -> Result<Vec<Question>> {
    let limit = limit.unwrap_or(usize::MAX);
    let mut records = match task {
        Task::HellaSwag if TextFormat::of(path)? == TextFormat::Plain => six_lines(path, limit)?,
        _ => read(path, limit)?,
    };
    if task == Task::Piqa && records.iter().any(|record| !record.has("label")) {
        add_labels(path, &mut records)?;
    }
    if records.is_empty() {
        return Err(Error::format(path, "expected questions, found no record"));
    }
    let question = |record: &Record| match task {
        Task::Lambada => lambada(record, recipe),
        Task::Piqa => piqa(record),
        Task::ArcEasy | Task::ArcChallenge => arc(record),
        Task::HellaSwag => hellaswag(record),
        Task::WinoGrande => winogrande(record),
        Task::BoolQ => boolq(record),
        Task::OpenBookQa => openbookqa(record),
        Task::StoryCloze => storycloze(record),
    };
    records.iter().map(question).collect()
}

/// A question with one context for all choices.
fn choose(record: &Record, context: &str, choices: &[&str], gold: usize) -> Result<Question> {
    if choices.len() < 2 {
        return Err(record.error(format!(
            "expected at least two choices, found {}",
            choices.len()
        )));
    }
    if let Some(empty) = choices.iter().position(|choice| choice.is_empty()) {
        return Err(record.error(format!(
            "expected a text for every choice, found none for choice {empty}"
        )));
    }
    if gold >= choices.len() {
        return Err(record.error(format!(
            "expected the right one among {} choices (from 0), found {gold}",
            choices.len()
        )));
    }
    let choices = choices.iter().map(|choice| Choice {
        context: context.to_owned(),
        continuation: format!(" {choice}"),
        characters: choice.chars().count(),
    });
    Ok(Question {
        place: record.place().to_owned(),
        choices: choices.collect(),
        gold,
    })
}

/// `query`, `choices`, `gold`: the query after `context` has made a prompt of it.
fn reformatted(record: &Record, context: impl Fn(&str) -> String) -> Result<Question> {
    let choices = record.texts("choices")?;
    let gold = record.index("gold", 0, choices.len())?;
    choose(record, &context(record.text("query")?), &choices, gold)
}

fn lambada(record: &Record, recipe: PromptRecipe) -> Result<Question> {
    let joined;
    let text = if record.has("text") {
        record.text("text")?
    } else {
        joined = format!(
            "{} {}",
            record.text("context")?,
            record.text("continuation")?
        );
        &joined
    };
    let parted = |text: &str| {
        let (context, word) = text.rsplit_once(' ').filter(|(_, word)| !word.is_empty())?;
        Some((context.to_owned(), word.to_owned()))
    };
    let unfit = || record.error("expected a text of several words that ends with the last of them");
    let (context, word) = parted(text).ok_or_else(unfit)?;
    let context = match recipe {
        PromptRecipe::Harness => context,
        PromptRecipe::Paper => parted(&plain_quotes(text.trim())).ok_or_else(unfit)?.0,
    };
    Ok(Question {
        place: record.place().to_owned(),
        choices: vec![Choice {
            context,
            characters: word.chars().count(),
            continuation: format!(" {word}"),
        }],
        gold: 0,
    })
}

/// What the harness of 2022 made of a LAMBADA passage.
fn plain_quotes(text: &str) -> String {
    let plain = ["\u{201c}", "\u{201d}", "''", "``"]
        .iter()
        .fold(text.to_owned(), |text, quotes| text.replace(quotes, "\""));
    format!("\n{}", plain.trim())
}

fn answer_prompt(question: &str) -> String {
    match question.starts_with("Question: ") {
        true => format!("{question}\nAnswer:"),
        false => format!("Question: {question}\nAnswer:"),
    }
}

fn piqa(record: &Record) -> Result<Question> {
    let choices = [record.text("sol1")?, record.text("sol2")?];
    let context = format!("Question: {}\nAnswer:", record.text("goal")?);
    choose(record, &context, &choices, record.index("label", 0, 2)?)
}

/// The right answers from the file beside a PIQA file, a line each.
fn add_labels(path: &Path, records: &mut [Record]) -> Result<()> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let labels = path.with_file_name(format!("{stem}-labels.lst"));
    if !labels.is_file() {
        return Err(Error::format(
            path,
            format!(
                "expected the field \"label\" in every record, or a file {} with a number a line",
                labels.display()
            ),
        ));
    }
    let mut lines = Lines::new(open(&labels)?, &labels);
    for record in records.iter_mut() {
        let line = lines.next().transpose()?.ok_or_else(|| {
            Error::format(
                &labels,
                format!(
                    "expected a number for every question of {}, found {} lines",
                    path.display(),
                    lines.line()
                ),
            )
        })?;
        let number: u64 = line.trim().parse().map_err(|_| {
            Error::format(
                &labels,
                format!(
                    "line {}: expected 0 or 1, found {:?}",
                    lines.line(),
                    line.trim()
                ),
            )
        })?;
        record.set("label", number.into());
    }
    Ok(())
}

/// Texts and right answer of `choices` (`text` and `label`, lists in it or in its items) and `answerKey`.
fn labelled(record: &Record) -> Result<(Vec<String>, usize)> {
    let owned =
        |texts: Vec<&str>| -> Vec<String> { texts.into_iter().map(str::to_owned).collect() };
    let (texts, labels) = if record.value("choices")?.is_array() {
        let items = record.items("choices")?;
        let part = |key: &str| {
            let texts: Result<Vec<&str>> = items.iter().map(|item| item.text(key)).collect();
            texts.map(owned)
        };
        (part("text")?, part("label")?)
    } else {
        let choices = record.inner("choices")?;
        (
            owned(choices.texts("text")?),
            owned(choices.texts("label")?),
        )
    };
    let answer = record.text("answerKey")?.trim();
    let gold = labels.iter().position(|label| label == answer);
    let gold = gold.ok_or_else(|| {
        record.error(format!(
            "field \"answerKey\": expected one of the choices' labels {labels:?}, found {answer:?}"
        ))
    })?;
    Ok((texts, gold))
}

/// The stem of a question and its choices, where both stand under `question` or the stem under `key` beside the choices.
fn with_stem(record: &Record, key: &str, context: impl Fn(&str) -> String) -> Result<Question> {
    let nested = record.has("question") && record.value("question")?.is_object();
    let (stem, (choices, gold)) = if nested {
        let mut question = record.inner("question")?;
        question.set("answerKey", record.value("answerKey")?.clone());
        (question.text("stem")?.to_owned(), labelled(&question)?)
    } else {
        (record.text(key)?.to_owned(), labelled(record)?)
    };
    let choices: Vec<&str> = choices.iter().map(String::as_str).collect();
    choose(record, &context(&stem), &choices, gold)
}

fn arc(record: &Record) -> Result<Question> {
    match record.has("query") {
        true => reformatted(record, answer_prompt),
        false => with_stem(record, "question", |question| {
            format!("Question: {question}\nAnswer:")
        }),
    }
}

fn openbookqa(record: &Record) -> Result<Question> {
    match record.has("query") {
        true => reformatted(record, str::to_owned),
        false => with_stem(record, "question_stem", str::to_owned),
    }
}

fn boolq(record: &Record) -> Result<Question> {
    if record.has("query") {
        // The harness's prompt does not announce the passage.
        let prompt = |query: &str| {
            let query = query.strip_prefix("Passage: ").unwrap_or(query);
            format!("{query}\nAnswer:")
        };
        return reformatted(record, prompt);
    }
    let gold = match record.has("answer") {
        true => match record.value("answer")? {
            Value::Bool(yes) => usize::from(*yes),
            _ => record.index("answer", 0, 2)?,
        },
        false => record.index("label", 0, 2)?,
    };
    let (passage, question) = (record.text("passage")?, record.text("question")?);
    let context = format!("{passage}\nQuestion: {question}?\nAnswer:");
    choose(record, &context, &["no", "yes"], gold)
}

/// The choices are beginnings, and what is scored is the same text behind each.
fn winogrande(record: &Record) -> Result<Question> {
    let (beginnings, rest, gold) = if record.has("context_options") {
        let beginnings = record.texts("context_options")?;
        let gold = record.index("gold", 0, beginnings.len())?;
        let beginnings = beginnings.into_iter().map(str::to_owned).collect();
        (beginnings, record.text("continuation")?, gold)
    } else {
        let sentence = record.text("sentence")?;
        let (before, behind) = sentence.split_once('_').ok_or_else(|| {
            record.error("field \"sentence\": expected a blank to fill in (_), found none")
        })?;
        let options = [record.text("option1")?, record.text("option2")?];
        let beginnings = options.map(|option| format!("{before}{option}")).to_vec();
        (beginnings, behind.trim(), record.index("answer", 1, 2)?)
    };
    let beginning: Vec<&str> = beginnings.iter().map(String::as_str).collect();
    let mut question = choose(record, "", &beginning, gold)?;
    for (choice, beginning) in question.choices.iter_mut().zip(beginnings) {
        choice.context = beginning;
        choice.continuation = format!(" {rest}");
    }
    Ok(question)
}

fn hellaswag(record: &Record) -> Result<Question> {
    if record.has("query") {
        return reformatted(record, str::to_owned);
    }
    let scene = format!(
        "{}: {} {}",
        record.text("activity_label")?,
        record.text("ctx_a")?,
        capitalized(record.text("ctx_b")?)
    );
    let endings = record.texts("endings")?;
    let gold = record.index("label", 0, endings.len())?;
    let endings: Vec<String> = endings.into_iter().map(without_tags).collect();
    let endings: Vec<&str> = endings.iter().map(String::as_str).collect();
    choose(record, &without_tags(&scene), &endings, gold)
}

/// As Python's `str.capitalize`: the first character large, all others small.
fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().map(char::to_uppercase);
    first.into_iter().flatten().collect::<String>() + &characters.as_str().to_lowercase()
}

/// The harness's cleaning of HellaSwag texts: what stands in brackets are tags of WikiHow.
fn without_tags(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut kept = String::new();
    let mut rest = text.as_str();
    while let Some(start) = rest.find('[') {
        let inside = &rest[start + 1..];
        // A tag does not go over the end of a line.
        match inside
            .find([']', '\n'])
            .filter(|&end| inside[end..].starts_with(']'))
        {
            Some(end) => {
                kept += &rest[..start];
                rest = &inside[end + 1..];
            }
            None => {
                kept += &rest[..=start];
                rest = inside;
            }
        }
    }
    (kept + rest).replace("  ", " ")
}

/// Six lines a question: scene, number of the right ending, four endings.
fn six_lines(path: &Path, limit: usize) -> Result<Vec<Record>> {
    const FIELDS: [&str; 6] = [
        "query", "gold", "ending 0", "ending 1", "ending 2", "ending 3",
    ];
    let mut lines = Lines::new(open(path)?, path);
    let mut records = Vec::new();
    while records.len() < limit {
        let mut found = Vec::new();
        while found.len() < FIELDS.len() {
            let Some(line) = lines.next().transpose()? else {
                break;
            };
            let line = line.trim_end_matches(['\r', '\n']).to_owned();
            match (line.is_empty(), found.len()) {
                (true, 0) => {}
                (true, part) => {
                    return Err(Error::format(
                        path,
                        format!(
                            "line {}: expected the {}, found an empty line",
                            lines.line(),
                            FIELDS[part]
                        ),
                    ));
                }
                (false, _) => found.push(line),
            }
        }
        if found.is_empty() {
            break;
        }
        let first = lines.line() + 1 - found.len();
        let [scene, gold, a, b, c, d] = found.as_slice() else {
            return Err(Error::format(
                path,
                format!(
                    "line {first}: expected six lines a question, found {} at the end",
                    found.len()
                ),
            ));
        };
        let fields: Map<String, Value> = [
            ("query".to_owned(), scene.as_str().into()),
            ("gold".to_owned(), gold.as_str().into()),
            ("choices".to_owned(), json!([a, b, c, d])),
        ]
        .into_iter()
        .collect();
        records.push(Record::new(path, format!("line {first}"), fields));
    }
    Ok(records)
}

fn storycloze(record: &Record) -> Result<Question> {
    // The authors' CSV, and HuggingFace's names for the same.
    let [sentence, ending, answer] = match record.has("InputSentence1") {
        true => [
            "InputSentence",
            "RandomFifthSentenceQuiz",
            "AnswerRightEnding",
        ],
        false => ["input_sentence_", "sentence_quiz", "answer_right_ending"],
    };
    let sentences = (1..=4).map(|number| record.text(&format!("{sentence}{number}")));
    let context = sentences.collect::<Result<Vec<_>>>()?.join(" ");
    let endings = [
        record.text(&format!("{ending}1"))?,
        record.text(&format!("{ending}2"))?,
    ];
    choose(record, &context, &endings, record.index(answer, 1, 2)?)
}
