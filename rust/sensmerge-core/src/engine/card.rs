//! Text of others in the model card: names in notes are neither markup, nor HTML, nor lines of their own.

/// A line of text for Markdown. Control characters and marks of direction, which cannot be seen, are
/// written as Rust writes them.
pub(super) fn text(line: &str) -> String {
    let mut found = String::with_capacity(line.len());
    for character in line.chars() {
        match character {
            '<' => found.push_str("&lt;"),
            '>' => found.push_str("&gt;"),
            '&' => found.push_str("&amp;"),
            '\\' | '`' | '*' | '[' | ']' => found.extend(['\\', character]),
            _ if is_unseen(character) => found.extend(character.escape_default()),
            _ => found.push(character),
        }
    }
    found
}

/// Whether a character changes a text without being seen in it.
fn is_unseen(character: char) -> bool {
    let marks = [
        '\u{61c}'..='\u{61c}',
        '\u{200b}'..='\u{200f}',
        '\u{2028}'..='\u{202e}',
        '\u{2060}'..='\u{206f}',
    ];
    character.is_control()
        || character == '\u{feff}'
        || marks.iter().any(|range| range.contains(&character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_others_is_text() {
        assert_eq!(
            text("merged 3 tensors of 'models/base_1'"),
            "merged 3 tensors of 'models/base_1'"
        );
        assert_eq!(text("<img src=x>\n# head"), "&lt;img src=x&gt;\\n# head");
        assert_eq!(text("`a` [b](c) *d*"), "\\`a\\` \\[b\\](c) \\*d\\*");
        assert_eq!(
            text("\u{1b}]0;x\u{7}\u{202e}λ"),
            "\\u{1b}]0;x\\u{7}\\u{202e}λ".replace(']', "\\]")
        );
    }
}
