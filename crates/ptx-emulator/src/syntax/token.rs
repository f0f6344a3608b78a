//! PTX text to tokens.

use super::ParseError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// An identifier, directive, opcode or number: everything made of letters, digits, `_ $ % .` and `::`.
    Word,
    Punctuation,
    Text,
    End,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'t> {
    pub(super) kind: Kind,
    pub(super) text: &'t str,
    /// Counted from 1.
    pub(super) line: u32,
}

fn in_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

/// Length of the word at the start of `text`.
fn word_length(text: &[u8]) -> usize {
    let decimal = text[0].is_ascii_digit()
        && !(text[0] == b'0' && text.len() > 1 && text[1].is_ascii_alphabetic());
    let mut i = 0;
    while i < text.len() {
        if in_word(text[i]) {
            i += 1;
        } else if text[i..].starts_with(b"::") && i > 0 {
            i += 2;
        } else if decimal
            && matches!(text[i], b'+' | b'-')
            && matches!(text[i - 1], b'e' | b'E')
            && text.get(i + 1).is_some_and(u8::is_ascii_digit)
        {
            i += 1;
        } else {
            break;
        }
    }
    i
}

pub(super) fn tokens(text: &str) -> Result<Vec<Token<'_>>, ParseError> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut i = 0;
    while i < bytes.len() {
        let rest = &bytes[i..];
        let (kind, length) = match bytes[i] {
            b'\n' => {
                line += 1;
                i += 1;
                continue;
            }
            c if c.is_ascii_whitespace() => {
                i += 1;
                continue;
            }
            _ if rest.starts_with(b"//") => {
                i += rest.iter().position(|c| *c == b'\n').unwrap_or(rest.len());
                continue;
            }
            _ if rest.starts_with(b"/*") => {
                let Some(end) = rest.windows(2).position(|w| w == b"*/") else {
                    return Err(ParseError::new(line, "a comment without end", "`*/`"));
                };
                line += rest[..end].iter().filter(|c| **c == b'\n').count() as u32;
                i += end + 2;
                continue;
            }
            b'"' => {
                let Some(end) = rest[1..].iter().position(|c| matches!(c, b'"' | b'\n')) else {
                    return Err(ParseError::new(line, "a text without end", "`\"`"));
                };
                (Kind::Text, end + 2)
            }
            c if in_word(c) => (Kind::Word, word_length(rest)),
            c if c.is_ascii_punctuation() => (Kind::Punctuation, 1),
            _ => {
                let found = text[i..].chars().next().unwrap_or(' ');
                return Err(ParseError::new(line, format!("`{found}`"), "ASCII text"));
            }
        };
        let Some(token) = text.get(i..i + length) else {
            return Err(ParseError::new(
                line,
                "a text that is not ASCII",
                "ASCII text",
            ));
        };
        tokens.push(Token {
            kind,
            text: token,
            line,
        });
        i += length;
    }
    tokens.push(Token {
        kind: Kind::End,
        text: "the end of the text",
        line,
    });
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<&str> {
        tokens(text).unwrap().iter().map(|t| t.text).collect()
    }

    #[test]
    fn words_hold_dots_and_double_colons() {
        assert_eq!(
            texts("ld.global.L2::128B.f32 %f<3>, [%rd1+16]; // end")[..12],
            [
                "ld.global.L2::128B.f32",
                "%f",
                "<",
                "3",
                ">",
                ",",
                "[",
                "%rd1",
                "+",
                "16",
                "]",
                ";"
            ]
        );
    }

    #[test]
    fn signs_belong_to_exponents_of_decimals_only() {
        assert_eq!(
            texts("1.5e-3 0x1e-3 a-1")[..7],
            ["1.5e-3", "0x1e", "-", "3", "a", "-", "1"]
        );
    }

    #[test]
    fn lines_count_through_comments() {
        let tokens = tokens("/* one\ntwo */ a\nb").unwrap();
        assert_eq!((tokens[0].line, tokens[1].line), (2, 3));
    }

    #[test]
    fn an_open_comment_is_an_error() {
        assert_eq!(tokens("a\n/* b").unwrap_err().line, 2);
    }
}
