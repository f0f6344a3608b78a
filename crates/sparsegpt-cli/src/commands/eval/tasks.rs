//! `sparsegpt eval --tasks`: zero-shot tasks, one model or several side by side.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use sparsegpt_models::evaluate::Mean;
use sparsegpt_models::zero_shot::{
    PromptRecipe, Question, Task, TaskResult, evaluate, questions, task_file,
};

use crate::bars::{self, Bar};
use crate::console::Console;
use crate::failure::Failure;
use crate::table::{Table, left, right};
use crate::tensor_file::check_output;
use crate::{interrupt, model};

/// Flags of `eval --tasks`.
#[derive(Args, Debug)]
pub(super) struct TaskFlags {
    /// Zero-shot tasks, separated by commas: lambada, piqa, arc_easy, arc_challenge, hellaswag, winogrande, boolq,
    /// openbookqa, storycloze; or `all` that the data have
    #[arg(
        long,
        value_name = "TASKS",
        requires = "data",
        help_heading = "Zero-shot tasks"
    )]
    tasks: Option<String>,

    /// A folder with the tasks' files, which have the task's name in their path; or TASK=FILE. Can be given several times
    #[arg(
        long,
        value_name = "DIR|TASK=FILE",
        requires = "tasks",
        help_heading = "Zero-shot tasks"
    )]
    data: Vec<String>,

    /// Draw the scores as an SVG file
    #[arg(
        value_parser = crate::bars::name_ending_in("svg"),
        long,
        value_name = "FILE",
        requires = "tasks",
        help_heading = "Zero-shot tasks"
    )]
    chart: Option<PathBuf>,
}

/// A task with its questions.
#[derive(Debug)]
struct Asked {
    task: Task,
    file: PathBuf,
    questions: Vec<Question>,
}

#[derive(Debug, Serialize)]
struct OfTask<'a> {
    file: &'a Path,
    #[serde(flatten)]
    result: TaskResult,
}

/// How one model did.
#[derive(Debug, Serialize)]
struct OfModel<'a> {
    model: &'a Path,
    name: String,
    tasks: Vec<OfTask<'a>>,
    /// Mean of the quoted scores.
    average: f64,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    version: &'static str,
    recipe: PromptRecipe,
    limit: Option<usize>,
    models: Vec<OfModel<'a>>,
}

pub(super) fn run(
    models: &[PathBuf],
    flags: &TaskFlags,
    recipe: Option<&str>,
    limit: Option<usize>,
    console: &Console,
) -> Result<(), Failure> {
    let recipe: PromptRecipe = recipe.map(str::parse).transpose()?.unwrap_or_default();
    if limit == Some(0) {
        return Err(Failure::usage(
            "--limit: expected at least 1 question, found 0",
        ));
    }
    if let Some(path) = &flags.chart {
        check_output(path, true)?;
    }
    let asked = asked(flags, recipe, limit, console)?;
    // All models are looked at before the first is run.
    let opened = models
        .iter()
        .map(|path| model::open_decoder(path, "eval", console));
    let opened = opened.collect::<Result<Vec<_>, _>>()?;
    let each: usize = asked.iter().map(|asked| asked.questions.len()).sum();
    let bar = console.progress((each * models.len()) as u64);
    let mut done = 0;
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        recipe,
        limit,
        models: Vec::new(),
    };
    for ((path, name), (checkpoint, _)) in models.iter().zip(model::names(models)).zip(opened) {
        let tokenizer = model::tokenizer(&checkpoint)?;
        let loaded = model::load(&checkpoint, &checkpoint.tensors())?;
        let mut tasks = Vec::new();
        for Asked {
            task,
            file,
            questions,
        } in &asked
        {
            interrupt::check()?;
            bar.set_message(format!("{name}, {task}"));
            let mut progress = |answered, _| {
                bar.set_position((done + answered) as u64);
                !interrupt::requested()
            };
            let result = evaluate(&loaded, &tokenizer, *task, recipe, questions, &mut progress)
                .map_err(|error| Failure::reading_text(file, error))?;
            done += questions.len();
            tasks.push(OfTask { file, result });
        }
        let quoted: f64 = tasks.iter().map(|of| of.result.quoted().value).sum();
        report.models.push(OfModel {
            model: path,
            name,
            average: quoted / tasks.len() as f64,
            tasks,
        });
    }
    bar.finish_and_clear();
    if let Some(path) = &flags.chart {
        bars::write(path, &chart(&report)?)?;
    }
    console.print(&table(&report))?;
    console.print_json(&report)
}

/// The tasks that are asked for, with their questions.
fn asked(
    flags: &TaskFlags,
    recipe: PromptRecipe,
    limit: Option<usize>,
    console: &Console,
) -> Result<Vec<Asked>, Failure> {
    let (mut folders, mut files) = (Vec::new(), Vec::new());
    for data in &flags.data {
        let named = data.split_once('=');
        match named.and_then(|(task, file)| Some((task.parse::<Task>().ok()?, file))) {
            Some((task, file)) => files.push((task, PathBuf::from(file))),
            None => folders.push(Path::new(data)),
        }
    }
    let list = flags.tasks.as_deref().unwrap_or_default();
    let tasks: Vec<Task> = match list {
        "all" => Task::ALL.to_vec(),
        list => {
            let names = list.split(',').map(str::trim);
            names.map(str::parse).collect::<Result<_, _>>()?
        }
    };
    let mut asked: Vec<Asked> = Vec::new();
    for task in tasks {
        if asked.iter().any(|asked| asked.task == task) {
            return Err(Failure::usage(format!(
                "--tasks: {task} stands there twice"
            )));
        }
        let Some(file) = find(task, &files, &folders)? else {
            let missing = format!(
                "--data: no file of the task {task} (its name in the path; .jsonl, .json, .parquet, .csv or .txt); give \
                 --data {task}=FILE"
            );
            if list == "all" {
                console.note(&missing);
                continue;
            }
            return Err(Failure::new(crate::failure::Exit::Input, missing));
        };
        let questions = questions(task, recipe, &file, limit).map_err(Failure::reading)?;
        asked.push(Asked {
            task,
            file,
            questions,
        });
    }
    match asked.is_empty() {
        true => Err(Failure::usage("--data: no file of any task in it")),
        false => Ok(asked),
    }
}

/// The file named for a task, else that of the first folder that has one.
fn find(
    task: Task,
    files: &[(Task, PathBuf)],
    folders: &[&Path],
) -> Result<Option<PathBuf>, Failure> {
    if let Some((_, file)) = files.iter().find(|(of, _)| *of == task) {
        return Ok(Some(file.clone()));
    }
    for folder in folders {
        if let Some(file) = task_file(folder, task).map_err(Failure::reading)? {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// The models' results for each task in turn.
fn by_task<'r>(report: &'r Report<'_>) -> impl Iterator<Item = (usize, &'r str, &'r TaskResult)> {
    let tasks = report.models.first().map_or(0, |of| of.tasks.len());
    (0..tasks).flat_map(move |task| {
        let models = report.models.iter().enumerate();
        models.map(move |(model, of)| (model, of.name.as_str(), &of.tasks[task].result))
    })
}

fn percent(score: Mean) -> String {
    format!(
        "{:.2} ± {:.2}",
        100.0 * score.value,
        100.0 * score.standard_error
    )
}

fn table(report: &Report<'_>) -> String {
    let mut table = Table::new([
        left("task"),
        left("model"),
        right("questions"),
        right("acc %"),
        right("acc_norm %"),
        right("perplexity"),
    ]);
    for (_, name, result) in by_task(report) {
        table.row([
            result.task.to_string(),
            name.to_owned(),
            result.questions.to_string(),
            percent(result.acc),
            result.acc_norm.map_or_else(String::new, percent),
            result.perplexity.map_or_else(String::new, |score| {
                format!("{:.2} ± {:.2}", score.value, score.standard_error)
            }),
        ]);
    }
    for of in &report.models {
        let mut cells: [String; 6] = Default::default();
        cells[0] = "average".to_owned();
        cells[1].clone_from(&of.name);
        cells[3] = format!("{:.2}", 100.0 * of.average);
        table.row(cells);
    }
    format!("{table}\n{}\n", remark(report.recipe))
}

fn remark(recipe: PromptRecipe) -> &'static str {
    match recipe {
        PromptRecipe::Paper => {
            "recipe paper: ± is the standard error; the average takes acc_norm for PIQA and ARC, acc for the others"
        }
        _ => "recipe harness: ± is the standard error; the average takes acc",
    }
}

/// A bar for each model and task, as long as the quoted score.
fn chart(report: &Report<'_>) -> Result<String, Failure> {
    let bars: Vec<Bar> = by_task(report)
        .map(|(model, name, result)| Bar {
            label: format!("{}, {name}", result.task),
            number: format!("{} %", percent(result.quoted())),
            length: result.quoted().value,
            color: model,
        })
        .collect();
    let title = format!("zero-shot accuracy, recipe {}", report.recipe);
    bars::draw(&title, &bars)
}
