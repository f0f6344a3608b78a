//! The command line.

use clap::{Parser, Subcommand};

use crate::commands::{
    bench, compare, demo, eval, export, generate, info, inspect, layer, logits, methods, pack,
    prune, repair, report,
};

const AFTER_HELP: &str = "\
MODEL is a HuggingFace folder (config.json, model.safetensors or shards, tokenizer.json) of the LLaMA, \
Mistral, Qwen2, Qwen3, Gemma 1 to 3, GPT-NeoX (Pythia), OPT, BLOOM, GPT-2, GPT-J, StableLM, Phi-3, Mixtral, \
Qwen2-MoE, Qwen3-MoE, BERT, RoBERTa or T5 family, a folder written by `pack`, or a .gguf file of one of the first three; `inspect` takes folders of any family.

Exit codes:
  0    done
  1    the work failed (a write, a device, a forward pass)
  2    wrong usage: a flag, a setting, flags that do not go together, an output that may not be replaced
  3    a model or file that was read is missing, broken or unfit (NaN or infinity, a text that is too short,
       token ids outside the vocabulary)
  4    a layer could not be solved (Hessian zero or not positive definite, an overflow)
  130  interrupted by Ctrl-C or a request to terminate";

/// One-shot pruning and quantization of GPT-family models, without retraining.
#[derive(Debug, Parser)]
#[command(name = "sparsegpt", version, after_help = AFTER_HELP, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// Print one JSON document on stdout and nothing else there
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// No progress bar and no remarks on stderr
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,

    /// CPU threads; 0 or none: one for each core
    #[arg(long, global = true, value_name = "N")]
    pub(crate) threads: Option<usize>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Prune the bundled model several ways, compare perplexities and generated text
    Demo(demo::DemoArgs),
    /// Prune and/or quantize a model
    #[command(after_help = AFTER_HELP)]
    Prune(Box<prune::PruneArgs>),
    /// Prune a model by several methods and compare errors, seconds and perplexities
    Compare(Box<compare::CompareArgs>),
    /// Write a low-rank adapter (LoRA) that gives a pruned model back a part of what it has lost
    Repair(repair::RepairArgs),
    /// Write a page about a pruning run: errors, zeros and seconds of its layers, perplexity, samples of text
    Report(report::ReportArgs),
    /// Measure a model's perplexity on a text, or several models on zero-shot tasks
    Eval(eval::EvalArgs),
    /// Write a model as a GGUF file
    Export(export::ExportArgs),
    /// Continue a text or answer a message, with one model or several side by side
    Generate(generate::GenerateArgs),
    /// Prune and/or quantize one weight matrix from a safetensors file
    Layer(Box<layer::LayerArgs>),
    /// Write a model's logits for given tokens
    Logits(logits::LogitsArgs),
    /// Show the zeros and N:M patterns of a model's layers
    Inspect(inspect::InspectArgs),
    /// Pack a pruned model for the sparse runtime: smaller, and faster on CPUs
    Pack(pack::PackArgs),
    /// Turn a packed model back into the checkpoint that was packed
    Unpack(pack::UnpackArgs),
    /// List the methods that --method takes, with what each does and its paper
    Methods(methods::MethodsArgs),
    /// Measure a model or a layer on sparse and on dense kernels of this machine
    Bench(bench::BenchArgs),
    /// Show what this machine can solve layers on
    Info(info::InfoArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
