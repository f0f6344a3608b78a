//! The `sparsegpt` command: a thin face over the `sparsegpt` and `sparsegpt-models` crates.

mod backend;
mod bars;
mod cli;
mod commands;
mod console;
mod cost;
mod evaluation_text;
mod failure;
mod flags;
mod html;
mod interrupt;
mod layer_file;
mod model;
mod table;
mod tensor_file;
mod trial;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use console::Console;
use failure::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.tell();
            failure.exit().into()
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    interrupt::install()?;
    let console = Console::new(cli.json, cli.quiet);
    match cli.command {
        Command::Prune(args) => commands::prune::run(args, cli.threads, &console),
        Command::Compare(args) => commands::compare::run(&args, cli.threads, &console),
        Command::Layer(args) => commands::layer::run(&args, cli.threads, &console),
        command => {
            let threads = cli.threads.unwrap_or(0);
            model::use_threads(threads)?;
            match command {
                Command::Bench(args) => commands::bench::run(&args, threads, &console),
                Command::Demo(args) => commands::demo::run(&args, threads, &console),
                Command::Eval(args) => commands::eval::run(&args, &console),
                Command::Export(args) => commands::export::run(&args, &console),
                Command::Generate(args) => commands::generate::run(&args, &console),
                Command::Logits(args) => commands::logits::run(&args, &console),
                Command::Methods(args) => commands::methods::run(&args, &console),
                Command::Info(args) => commands::info::run(&args, threads, &console),
                Command::Inspect(args) => commands::inspect::run(&args, &console),
                Command::Report(args) => commands::report::run(&args, &console),
                Command::Repair(args) => commands::repair::run(&args, threads, &console),
                Command::Pack(args) => commands::pack::pack(&args, &console),
                Command::Unpack(args) => commands::pack::unpack(&args, &console),
                Command::Prune(_) | Command::Compare(_) | Command::Layer(_) => Ok(()),
            }
        }
    }
}
