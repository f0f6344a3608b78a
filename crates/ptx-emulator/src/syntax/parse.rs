//! Tokens to the tree.

use super::token::{Kind, Token, tokens};
use super::{
    Entry, Item, Operand, ParameterText, ParseError, ScalarType, Source, Statement, Variable,
    VariableSpace,
};

/// Reads the text of a module.
pub(crate) fn parse(text: &str) -> Result<Source, ParseError> {
    let mut parser = Parser {
        tokens: tokens(text)?,
        next: 0,
    };
    parser.module()
}

struct Parser<'t> {
    tokens: Vec<Token<'t>>,
    next: usize,
}

type Parsed<T> = Result<T, ParseError>;

impl<'t> Parser<'t> {
    /// The last token is the end, and is never passed.
    fn peek(&self) -> Token<'t> {
        self.tokens[self.next.min(self.tokens.len() - 1)]
    }

    fn take(&mut self) -> Token<'t> {
        let token = self.peek();
        self.next += 1;
        token
    }

    fn refuse<T>(&self, token: Token<'_>, expected: impl Into<String>) -> Parsed<T> {
        let found = match token.kind {
            Kind::End => token.text.to_owned(),
            _ => format!("`{}`", token.text),
        };
        Err(ParseError::new(token.line, found, expected))
    }

    fn is(&self, text: &str) -> bool {
        let token = self.peek();
        token.kind != Kind::Text && token.kind != Kind::End && token.text == text
    }

    fn skip(&mut self, text: &str) -> bool {
        let is = self.is(text);
        self.next += usize::from(is);
        is
    }

    fn expect(&mut self, text: &str) -> Parsed<()> {
        if self.skip(text) {
            Ok(())
        } else {
            self.refuse(self.peek(), format!("`{text}`"))
        }
    }

    fn word(&mut self, expected: &str) -> Parsed<Token<'t>> {
        let token = self.take();
        if token.kind == Kind::Word {
            Ok(token)
        } else {
            self.refuse(token, expected)
        }
    }

    fn name(&mut self) -> Parsed<String> {
        let token = self.word("a name")?;
        if token
            .text
            .starts_with(|c: char| c.is_ascii_digit() || c == '.')
        {
            return self.refuse(token, "a name");
        }
        Ok(token.text.to_owned())
    }

    fn count(&mut self, expected: &str) -> Parsed<usize> {
        let token = self.word(expected)?;
        match integer(token.text).and_then(|v| usize::try_from(v).ok()) {
            Some(value) => Ok(value),
            None => self.refuse(token, expected),
        }
    }

    /// A directive's type: `.f32`.
    fn scalar_type(&mut self) -> Parsed<ScalarType> {
        let token = self.word("a type")?;
        match token.text.strip_prefix('.').and_then(ScalarType::from_name) {
            Some(ty) => Ok(ty),
            None => self.refuse(token, "a type such as `.f32`"),
        }
    }

    fn module(&mut self) -> Parsed<Source> {
        self.expect(".version")?;
        let version = self.word("a version")?;
        let number = |text: Option<&str>| text.and_then(|t| t.parse().ok());
        let mut parts = version.text.split('.');
        let (Some(major), Some(minor)) = (number(parts.next()), number(parts.next())) else {
            return self.refuse(version, "a version such as `7.0`");
        };
        self.expect(".target")?;
        let target = self.word("a target such as `sm_80`")?.text.to_owned();
        self.expect(".address_size")?;
        let size = self.word("`64`")?;
        if size.text != "64" {
            return self.refuse(size, "`64`");
        }
        let mut source = Source {
            version: (major, minor),
            target,
            variables: Vec::new(),
            entries: Vec::new(),
        };
        loop {
            let token = self.peek();
            match token.text {
                _ if token.kind == Kind::End => return Ok(source),
                ".visible" | ".weak" => {
                    self.take();
                }
                ".entry" => source.entries.push(self.entry()?),
                ".extern" | ".shared" | ".const" | ".global" => {
                    source.variables.push(self.variable()?);
                }
                ".file" | ".section" | ".loc" => self.rest_of_line(),
                _ => {
                    return self.refuse(
                        token,
                        "`.entry` or a `.shared`, `.const` or `.global` variable (functions are not modelled)",
                    );
                }
            }
        }
    }

    fn rest_of_line(&mut self) {
        let line = self.peek().line;
        while self.peek().kind != Kind::End && self.peek().line == line {
            self.take();
        }
    }

    /// `.shared .align 16 .b8 name[64] = {1, 2};`
    fn variable(&mut self) -> Parsed<Variable> {
        let external = self.skip(".extern");
        let token = self.take();
        let space = match token.text {
            ".shared" => VariableSpace::Shared,
            ".const" => VariableSpace::Constant,
            ".global" => VariableSpace::Global,
            _ => return self.refuse(token, "`.shared`, `.const` or `.global`"),
        };
        let mut align = None;
        if self.skip(".align") {
            align = Some(self.alignment()?);
        }
        let ty = self.scalar_type()?;
        let name = self.name()?;
        let mut count = Some(1);
        while self.skip("[") {
            if self.skip("]") {
                count = None;
                continue;
            }
            let dimension = self.count("a number of elements")?;
            count = count.map(|c: usize| c.saturating_mul(dimension));
            self.expect("]")?;
        }
        let mut values = Vec::new();
        if self.skip("=") {
            match self.operand()? {
                Operand::Vector(parts) => values = parts,
                single => values.push(single),
            }
        }
        self.expect(";")?;
        let variable = Variable {
            line: token.line,
            space,
            align: align.unwrap_or_else(|| ty.bytes()),
            ty,
            name,
            count,
            values,
        };
        let text = format!(
            "`{}` {}",
            variable.name,
            if external {
                "declared `.extern`"
            } else {
                "without a size"
            }
        );
        match (external, variable.count, space) {
            (true, None, VariableSpace::Shared) | (false, Some(_), _) => {}
            (false, None, VariableSpace::Constant | VariableSpace::Global)
                if !variable.values.is_empty() => {}
            _ => {
                return Err(ParseError::new(
                    token.line,
                    text,
                    "`.extern .shared name[]` for dynamic shared memory, or a size",
                ));
            }
        }
        if variable.count.is_some_and(|c| variable.values.len() > c) {
            return Err(ParseError::new(
                token.line,
                format!("{} values for `{}`", variable.values.len(), variable.name),
                "as many as it has elements, at most",
            ));
        }
        if space == VariableSpace::Shared && !variable.values.is_empty() {
            return Err(ParseError::new(
                token.line,
                "an initial value in shared memory",
                "none",
            ));
        }
        Ok(Variable {
            count: if external {
                None
            } else {
                variable.count.or(Some(variable.values.len()))
            },
            ..variable
        })
    }

    fn alignment(&mut self) -> Parsed<usize> {
        let token = self.peek();
        let align = self.count("an alignment")?;
        if align.is_power_of_two() {
            Ok(align)
        } else {
            self.refuse(token, "a power of two")
        }
    }

    fn entry(&mut self) -> Parsed<Entry> {
        let line = self.take().line;
        let name = self.name()?;
        let mut parameters = Vec::new();
        if self.skip("(") && !self.skip(")") {
            loop {
                parameters.push(self.parameter()?);
                if !self.skip(",") {
                    break;
                }
            }
            self.expect(")")?;
        }
        let (mut required_threads, mut max_threads) = (None, None);
        loop {
            let token = self.take();
            match token.text {
                "{" => break,
                ".reqntid" => required_threads = Some(self.dimensions()?),
                ".maxntid" => max_threads = Some(self.dimensions()?),
                ".minnctapersm" | ".maxnreg" => {
                    self.count("a number")?;
                }
                _ => return self.refuse(token, "`{`, `.reqntid` or `.maxntid`"),
            }
        }
        let body = self.body()?;
        Ok(Entry {
            line,
            name,
            parameters,
            required_threads,
            max_threads,
            body,
        })
    }

    fn dimensions(&mut self) -> Parsed<[u32; 3]> {
        let mut dimensions = [1; 3];
        for dimension in &mut dimensions {
            let token = self.peek();
            *dimension = match u32::try_from(self.count("a number of threads")?) {
                Ok(value) => value,
                Err(_) => return self.refuse(token, "a number of threads"),
            };
            if !self.skip(",") {
                break;
            }
        }
        Ok(dimensions)
    }

    /// `.param .u64 .ptr .global .align 16 name`
    fn parameter(&mut self) -> Parsed<ParameterText> {
        self.expect(".param")?;
        let mut align = None;
        if self.skip(".align") {
            align = Some(self.alignment()?);
        }
        let ty = self.scalar_type()?;
        if self.skip(".ptr") {
            for space in [".global", ".shared", ".const", ".local"] {
                self.skip(space);
            }
            if self.skip(".align") {
                self.alignment()?;
            }
        }
        let name = self.name()?;
        let mut count = 1;
        if self.skip("[") {
            count = self.count("a number of elements")?;
            self.expect("]")?;
        }
        Ok(ParameterText {
            ty,
            align: align.unwrap_or_else(|| ty.bytes()),
            name,
            count,
        })
    }

    fn body(&mut self) -> Parsed<Vec<Item>> {
        let mut items = Vec::new();
        let mut depth = 0;
        loop {
            let token = self.peek();
            match token.text {
                _ if token.kind == Kind::End => return self.refuse(token, "`}`"),
                "}" => {
                    self.take();
                    if depth == 0 {
                        return Ok(items);
                    }
                    depth -= 1;
                    items.push(Item::Close);
                }
                "{" => {
                    self.take();
                    depth += 1;
                    items.push(Item::Open);
                }
                ".reg" => items.push(self.registers()?),
                ".shared" => items.push(Item::Variable(self.variable()?)),
                ".pragma" => {
                    while !self.skip(";") {
                        let token = self.take();
                        if token.kind == Kind::End {
                            return self.refuse(token, "`;`");
                        }
                    }
                }
                ".loc" => self.rest_of_line(),
                text if text.starts_with('.') => {
                    return self.refuse(token, "`.reg`, `.shared`, a label or an instruction");
                }
                _ => items.push(self.labelled()?),
            }
        }
    }

    /// `.reg .f32 %f<12>, x;`
    fn registers(&mut self) -> Parsed<Item> {
        let line = self.take().line;
        let ty = self.scalar_type()?;
        if matches!(ty, ScalarType::Bf16 | ScalarType::Tf32 | ScalarType::Bf16x2) {
            return Err(ParseError::new(
                line,
                format!("registers of type {ty}"),
                "`.b16` or `.b32`, which hold such values",
            ));
        }
        let mut names = Vec::new();
        loop {
            let name = self.name()?;
            if self.skip("<") {
                let token = self.peek();
                let count = self.count("a number of registers")?;
                if count > 65_536 {
                    return self.refuse(token, "at most 65536 registers");
                }
                self.expect(">")?;
                names.extend((0..count).map(|i| format!("{name}{i}")));
            } else {
                names.push(name);
            }
            if !self.skip(",") {
                break;
            }
        }
        self.expect(";")?;
        Ok(Item::Registers { line, ty, names })
    }

    /// A label, or an instruction.
    fn labelled(&mut self) -> Parsed<Item> {
        let line = self.peek().line;
        let mut guard = None;
        if self.skip("@") {
            let negated = self.skip("!");
            guard = Some((self.name()?, negated));
        }
        let opcode = self.word("an instruction or a label")?;
        if opcode.text.starts_with(|c: char| c.is_ascii_digit()) {
            return self.refuse(opcode, "an instruction or a label");
        }
        if guard.is_none() && self.skip(":") {
            return Ok(Item::Label {
                line,
                name: opcode.text.to_owned(),
            });
        }
        let mut operands = Vec::new();
        if !self.skip(";") {
            loop {
                operands.push(self.operand()?);
                if !self.skip(",") {
                    break;
                }
            }
            self.expect(";")?;
        }
        Ok(Item::Statement(Statement {
            line,
            guard,
            opcode: opcode.text.to_owned(),
            operands,
        }))
    }

    fn operand(&mut self) -> Parsed<Operand> {
        if self.skip("{") {
            let mut parts = Vec::new();
            if self.skip("}") {
                return Ok(Operand::Vector(parts));
            }
            loop {
                parts.push(self.operand()?);
                if !self.skip(",") {
                    break;
                }
            }
            self.expect("}")?;
            return Ok(Operand::Vector(parts));
        }
        if self.skip("[") {
            let base = self.single()?;
            let mut offset = 0_i64;
            loop {
                let sign = if self.skip("+") {
                    if self.skip("-") { -1 } else { 1 }
                } else if self.skip("-") {
                    -1
                } else {
                    break;
                };
                let token = self.word("an offset in bytes")?;
                let Some(value) = integer(token.text).and_then(|v| i64::try_from(v).ok()) else {
                    return self.refuse(token, "an offset in bytes");
                };
                offset = offset.wrapping_add(sign * value);
            }
            self.expect("]")?;
            return Ok(Operand::Address {
                base: Box::new(base),
                offset,
            });
        }
        self.single()
    }

    /// An operand that is neither vector nor address.
    fn single(&mut self) -> Parsed<Operand> {
        if self.skip("!") {
            return Ok(Operand::Not(self.name()?));
        }
        let negative = self.skip("-");
        let token = self.word("an operand")?;
        let text = token.text;
        if text == "_" {
            return Ok(match self.skip("|") {
                true => Operand::Pair(text.to_owned(), self.name_or_sink()?),
                false => Operand::Sink,
            });
        }
        if !text.starts_with(|c: char| c.is_ascii_digit()) {
            if negative {
                return self.refuse(token, "a number after the minus sign");
            }
            if self.skip("|") {
                return Ok(Operand::Pair(text.to_owned(), self.name_or_sink()?));
            }
            return Ok(Operand::Name(text.to_owned()));
        }
        match literal(text) {
            Some(Operand::Integer { bits, .. }) if negative => Ok(Operand::Integer {
                bits: bits.wrapping_neg(),
                negative,
            }),
            Some(Operand::F32(bits)) if negative => Ok(Operand::F32(bits ^ 1 << 31)),
            Some(Operand::F64(bits)) if negative => Ok(Operand::F64(bits ^ 1 << 63)),
            Some(Operand::Decimal(value)) if negative => Ok(Operand::Decimal(-value)),
            Some(operand) => Ok(operand),
            None => self.refuse(token, "a number"),
        }
    }

    fn name_or_sink(&mut self) -> Parsed<String> {
        if self.skip("_") {
            Ok("_".into())
        } else {
            self.name()
        }
    }
}

fn integer(text: &str) -> Option<u64> {
    let text = text.strip_suffix('U').unwrap_or(text);
    let lower = text.to_ascii_lowercase();
    if let Some(hex) = lower.strip_prefix("0x") {
        u64::from_str_radix(hex, 16).ok()
    } else if let Some(binary) = lower.strip_prefix("0b") {
        u64::from_str_radix(binary, 2).ok()
    } else if lower.len() > 1 && lower.starts_with('0') {
        u64::from_str_radix(&lower[1..], 8).ok()
    } else {
        lower.parse().ok()
    }
}

fn literal(text: &str) -> Option<Operand> {
    let digits = |length: usize| (text.len() == length + 2).then(|| &text[2..]);
    match text.get(..2) {
        Some("0f" | "0F") => u32::from_str_radix(digits(8)?, 16).ok().map(Operand::F32),
        Some("0d" | "0D") => u64::from_str_radix(digits(16)?, 16).ok().map(Operand::F64),
        _ => integer(text)
            .map(|bits| Operand::Integer {
                bits,
                negative: false,
            })
            .or_else(|| text.parse().ok().map(Operand::Decimal)),
    }
}
