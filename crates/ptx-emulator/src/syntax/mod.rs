//! The text of a module as a tree, names still unresolved.

mod parse;
mod token;
mod types;

pub(crate) use parse::parse;
pub use types::ScalarType;

/// Why a PTX text is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("PTX line {line}: found {found}, expected {expected}")]
pub struct ParseError {
    /// Line of the text, counted from 1.
    pub line: u32,
    /// What stands there.
    pub found: String,
    /// What could stand there.
    pub expected: String,
}

impl ParseError {
    pub(crate) fn new(line: u32, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self {
            line,
            found: found.into(),
            expected: expected.into(),
        }
    }
}

/// A module's text.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) version: (u32, u32),
    pub(crate) target: String,
    pub(crate) variables: Vec<Variable>,
    pub(crate) entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VariableSpace {
    Shared,
    Constant,
    Global,
}

/// A `.shared`, `.const` or `.global` variable.
#[derive(Debug)]
pub(crate) struct Variable {
    pub(crate) line: u32,
    pub(crate) space: VariableSpace,
    pub(crate) align: usize,
    pub(crate) ty: ScalarType,
    pub(crate) name: String,
    /// Number of elements; none where the launch decides (`.extern .shared`).
    pub(crate) count: Option<usize>,
    pub(crate) values: Vec<Operand>,
}

impl Variable {
    pub(crate) fn bytes(&self) -> usize {
        self.count.unwrap_or(0).saturating_mul(self.ty.bytes())
    }
}

/// A parameter of a kernel as written.
#[derive(Debug)]
pub(crate) struct ParameterText {
    pub(crate) ty: ScalarType,
    pub(crate) align: usize,
    pub(crate) name: String,
    pub(crate) count: usize,
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) line: u32,
    pub(crate) name: String,
    pub(crate) parameters: Vec<ParameterText>,
    pub(crate) required_threads: Option<[u32; 3]>,
    pub(crate) max_threads: Option<[u32; 3]>,
    pub(crate) body: Vec<Item>,
}

impl Entry {
    /// Whether an operand of the body has this name.
    pub(crate) fn mentions(&self, name: &str) -> bool {
        self.body.iter().any(|item| match item {
            Item::Statement(statement) => statement.operands.iter().any(|o| o.mentions(name)),
            _ => false,
        })
    }
}

#[derive(Debug)]
pub(crate) enum Item {
    Registers {
        line: u32,
        ty: ScalarType,
        names: Vec<String>,
    },
    Variable(Variable),
    Label {
        line: u32,
        name: String,
    },
    Statement(Statement),
    Open,
    Close,
}

#[derive(Debug)]
pub(crate) struct Statement {
    pub(crate) line: u32,
    /// Predicate and whether it is negated.
    pub(crate) guard: Option<(String, bool)>,
    pub(crate) opcode: String,
    pub(crate) operands: Vec<Operand>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    Name(String),
    /// `!p`
    Not(String),
    /// `d|p`
    Pair(String, String),
    /// As two's complement, and whether there was a minus sign.
    Integer {
        bits: u64,
        negative: bool,
    },
    /// `0f…`
    F32(u32),
    /// `0d…`
    F64(u64),
    /// A float in decimal digits.
    Decimal(f64),
    Vector(Vec<Self>),
    Address {
        base: Box<Self>,
        offset: i64,
    },
    /// `_`
    Sink,
}

impl Operand {
    fn mentions(&self, name: &str) -> bool {
        match self {
            Self::Name(own) => own == name,
            Self::Vector(parts) => parts.iter().any(|part| part.mentions(name)),
            Self::Address { base, .. } => base.mentions(name),
            _ => false,
        }
    }

    /// For error messages.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Name(name) => format!("`{name}`"),
            Self::Not(name) => format!("`!{name}`"),
            Self::Pair(a, b) => format!("`{a}|{b}`"),
            Self::Integer {
                bits,
                negative: true,
            } => format!("`{}`", *bits as i64),
            Self::Integer { bits, .. } => format!("`{bits}`"),
            Self::F32(bits) => format!("`0f{bits:08X}`"),
            Self::F64(bits) => format!("`0d{bits:016X}`"),
            Self::Decimal(value) => format!("`{value}`"),
            Self::Vector(parts) => format!("a vector of {}", parts.len()),
            Self::Address { .. } => "an address in brackets".into(),
            Self::Sink => "`_`".into(),
        }
    }
}
