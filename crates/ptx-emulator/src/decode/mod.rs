//! The tree of a kernel to instructions: names resolved, types checked, ways through the code known.

mod access;
mod arithmetic;
mod control;
mod convert;
mod exchange;
mod flow;
mod modifiers;
mod operands;

use std::collections::HashMap;

use crate::instruction::{Guard, Initial, Instruction, Op, Slot};
use crate::memory::CONSTANT_WINDOW;
use crate::module::{Addresses, Kernel, Parameter};
use crate::syntax::{Entry, Item, Operand, ParseError, ScalarType, Statement, Variable};

use modifiers::Modifiers;
use operands::Operands;

type Parsed<T> = Result<T, ParseError>;

/// The module's `.const` and `.global` variables: tables that no kernel may write.
#[derive(Debug, Default)]
pub(crate) struct Constants {
    pub(crate) bytes: Vec<u8>,
    pub(crate) addresses: Addresses,
}

impl Constants {
    pub(crate) fn add(&mut self, variable: &Variable) -> Parsed<()> {
        let start = self.bytes.len().next_multiple_of(variable.align);
        self.bytes.resize(start + variable.bytes(), 0);
        let width = variable.ty.bytes();
        for (i, value) in variable.values.iter().enumerate() {
            let bits = operands::immediate(value, variable.ty).ok_or_else(|| {
                ParseError::new(
                    variable.line,
                    value.describe(),
                    format!("a {} value", variable.ty),
                )
            })?;
            let at = start + i * width;
            self.bytes[at..at + width].copy_from_slice(&bits.to_le_bytes()[..width]);
        }
        self.addresses
            .insert(variable.name.clone(), CONSTANT_WINDOW + start as u64);
        Ok(())
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug)]
enum Named {
    Register { slot: Slot, ty: ScalarType },
    Predicate(u32),
    Variable(Initial),
    Parameter { offset: usize, bytes: usize },
}

/// A branch whose label may come later.
struct OpenBranch {
    instruction: usize,
    label: String,
    scope: usize,
    line: u32,
}

struct Decoder {
    scopes: Vec<HashMap<String, Named>>,
    /// Identity of each open scope, innermost last, and the parent of each scope ever opened.
    open: Vec<usize>,
    parents: Vec<usize>,
    labels: HashMap<(usize, String), u32>,
    branches: Vec<OpenBranch>,
    slot_names: Vec<String>,
    predicate_names: Vec<String>,
    initial: HashMap<Initial, Slot>,
    code: Vec<Instruction>,
    shared_bytes: usize,
    dynamic_align: Option<usize>,
    contractible_lines: Vec<u32>,
}

/// Decodes one kernel.
pub(crate) fn kernel(entry: Entry, shared: &[Variable], constants: &Constants) -> Parsed<Kernel> {
    let mut decoder = Decoder {
        scopes: vec![HashMap::new(), HashMap::new()],
        open: vec![0],
        parents: vec![0],
        labels: HashMap::new(),
        branches: Vec::new(),
        slot_names: Vec::new(),
        predicate_names: Vec::new(),
        initial: HashMap::new(),
        code: Vec::new(),
        shared_bytes: 0,
        dynamic_align: None,
        contractible_lines: Vec::new(),
    };
    for (name, address) in &constants.addresses {
        decoder.scopes[0].insert(name.clone(), Named::Variable(Initial::Constant(*address)));
    }
    // A kernel has the module's shared variables that it mentions.
    for variable in shared.iter().filter(|v| entry.mentions(&v.name)) {
        decoder.variable(variable)?;
    }
    let mut parameters = Vec::new();
    let mut offset = 0_usize;
    for text in entry.parameters {
        offset = offset.next_multiple_of(text.align);
        let bytes = text.count * text.ty.bytes();
        decoder.declare(entry.line, &text.name, Named::Parameter { offset, bytes })?;
        parameters.push(Parameter {
            name: text.name,
            ty: text.ty,
            bytes,
            offset,
        });
        offset += bytes;
    }
    decoder.body(&entry.body)?;
    decoder.resolve_branches()?;
    flow::join_branches(&mut decoder.code);
    let dynamic_shared = decoder
        .dynamic_align
        .map(|align| decoder.shared_bytes.next_multiple_of(align.max(16)));
    Ok(Kernel {
        name: entry.name,
        parameters,
        parameter_bytes: offset,
        shared_bytes: decoder.shared_bytes,
        dynamic_shared,
        required_threads: entry.required_threads,
        max_threads: entry.max_threads,
        code: decoder.code,
        initial: decoder
            .initial
            .into_iter()
            .map(|(initial, slot)| (slot, initial))
            .collect(),
        slot_names: decoder.slot_names,
        predicate_names: decoder.predicate_names,
        contractible_lines: decoder.contractible_lines,
    })
}

impl Decoder {
    fn declare(&mut self, line: u32, name: &str, named: Named) -> Parsed<()> {
        let scope = self.scopes.len() - 1;
        match self.scopes[scope].insert(name.to_owned(), named) {
            None => Ok(()),
            Some(_) => Err(ParseError::new(
                line,
                format!("a second `{name}` in one scope"),
                "names that differ",
            )),
        }
    }

    fn lookup(&self, name: &str) -> Option<Named> {
        self.scopes
            .iter()
            .rev()
            .find_map(|scope| scope.get(name).copied())
    }

    /// A shared variable.
    fn variable(&mut self, variable: &Variable) -> Parsed<()> {
        let initial = if variable.count.is_some() {
            let start = self.shared_bytes.next_multiple_of(variable.align);
            self.shared_bytes = start + variable.bytes();
            Initial::Constant(start as u64)
        } else {
            self.dynamic_align = self.dynamic_align.max(Some(variable.align));
            Initial::DynamicShared
        };
        self.declare(variable.line, &variable.name, Named::Variable(initial))
    }

    fn body(&mut self, items: &[Item]) -> Parsed<()> {
        for item in items {
            match item {
                Item::Open => {
                    let parent = self.scope();
                    self.open.push(self.parents.len());
                    self.parents.push(parent);
                    self.scopes.push(HashMap::new());
                }
                Item::Close => {
                    self.open.pop();
                    self.scopes.pop();
                }
                Item::Registers { line, ty, names } => {
                    for name in names {
                        let named = if *ty == ScalarType::Pred {
                            Named::Predicate(self.new_predicate(name))
                        } else {
                            Named::Register {
                                slot: self.new_slot(name),
                                ty: *ty,
                            }
                        };
                        self.declare(*line, name, named)?;
                    }
                }
                Item::Variable(variable) => self.variable(variable)?,
                Item::Label { line, name } => {
                    let key = (self.scope(), name.clone());
                    if self.labels.insert(key, self.code.len() as u32).is_some() {
                        return Err(ParseError::new(
                            *line,
                            format!("a second label `{name}` in one scope"),
                            "labels that differ",
                        ));
                    }
                }
                Item::Statement(statement) => self.statement(statement)?,
            }
        }
        // Code that runs off its end returns.
        self.code.push(Instruction {
            line: self.code.last().map_or(0, |i| i.line),
            guard: None,
            op: Op::Exit,
        });
        Ok(())
    }

    /// The innermost open scope.
    fn scope(&self) -> usize {
        self.open.last().copied().unwrap_or(0)
    }

    fn new_slot(&mut self, name: &str) -> Slot {
        self.slot_names.push(name.to_owned());
        self.slot_names.len() as Slot - 1
    }

    fn new_predicate(&mut self, name: &str) -> u32 {
        self.predicate_names.push(name.to_owned());
        self.predicate_names.len() as u32 - 1
    }

    /// The slot that holds this from the start.
    fn initial(&mut self, initial: Initial, name: &str) -> Slot {
        if let Some(slot) = self.initial.get(&initial) {
            return *slot;
        }
        let slot = self.new_slot(name);
        self.initial.insert(initial, slot);
        slot
    }

    fn guard(&self, line: u32, name: &str, negated: bool) -> Parsed<Guard> {
        match self.lookup(name) {
            Some(Named::Predicate(predicate)) => Ok(Guard { predicate, negated }),
            _ => Err(ParseError::new(
                line,
                format!("`{name}`"),
                "a declared predicate register",
            )),
        }
    }

    fn statement(&mut self, statement: &Statement) -> Parsed<()> {
        let line = statement.line;
        let guard = match &statement.guard {
            Some((name, negated)) => Some(self.guard(line, name, *negated)?),
            None => None,
        };
        let mut modifiers = Modifiers::new(line, &statement.opcode);
        let mut operands = Operands::new(line, &statement.opcode, &statement.operands);
        let op = self.op(&mut modifiers, &mut operands)?;
        modifiers.finish()?;
        operands.finish()?;
        self.code.push(Instruction { line, guard, op });
        Ok(())
    }

    fn op(&mut self, m: &mut Modifiers<'_>, o: &mut Operands<'_>) -> Parsed<Op> {
        m.refuse_inexact()?;
        match m.base() {
            "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "abs"
            | "neg" | "sqrt" | "rcp" | "and" | "or" | "xor" | "not" | "shl" | "shr" | "popc"
            | "clz" | "brev" | "bfind" | "bfe" | "bfi" | "lop3" | "prmt" | "shf" | "copysign" => {
                self.arithmetic(m, o)
            }
            "setp" | "selp" | "testp" => self.comparison(m, o),
            "mov" | "cvt" | "cvta" => self.conversion(m, o),
            "ld" | "st" | "atom" | "red" | "cp" => self.access(m, o),
            "shfl" | "vote" | "activemask" | "redux" | "mma" | "ldmatrix" => self.exchange(m, o),
            "bra" | "ret" | "exit" | "trap" | "bar" | "barrier" | "fence" | "membar"
            | "prefetch" => self.control(m, o),
            _ => Err(m.unknown()),
        }
    }

    /// Remembers a branch until all labels are known.
    fn branch_to(&mut self, o: &mut Operands<'_>) -> Parsed<Op> {
        let operand = o.next("a label")?;
        let Operand::Name(label) = operand else {
            return Err(o.refuse(operand, "a label"));
        };
        self.branches.push(OpenBranch {
            instruction: self.code.len(),
            label: label.clone(),
            scope: self.scope(),
            line: o.line,
        });
        Ok(Op::Branch { target: 0, join: 0 })
    }

    fn resolve_branches(&mut self) -> Parsed<()> {
        for branch in &self.branches {
            let mut scope = branch.scope;
            let target = loop {
                if let Some(target) = self.labels.get(&(scope, branch.label.clone())) {
                    break *target;
                }
                if scope == 0 {
                    return Err(ParseError::new(
                        branch.line,
                        format!("a branch to `{}`", branch.label),
                        "a label of this kernel",
                    ));
                }
                scope = self.parents[scope];
            };
            self.code[branch.instruction].op = Op::Branch { target, join: 0 };
        }
        Ok(())
    }
}
