//! What to type after a run.

use std::path::Path;

use metal_candle::train::report::{History, NextCommand};

/// The commands that the report of a run offers: nothing before there is an adapter.
pub(crate) fn next_commands(history: &History, folder: &Path) -> Vec<NextCommand> {
    let (Some(started), Some(_)) = (&history.started, &history.finished) else { return Vec::new() };
    let result = quoted(&folder.display().to_string());
    // Where all weights are trained, the folder is a model itself.
    let subject = match started.config["method"] == "full" {
        true => format!("-m {result}"),
        false => format!("-m {} --adapter {result}", quoted(&started.model)),
    };
    let prompt = history.samples.first().map_or("Tell me something.", |sample| sample.prompt.as_str());
    let prompt = quoted(prompt);
    let commands = [
        ("Ask the model", format!("generate {subject} --prompt {prompt}")),
        ("Talk to it", format!("chat {subject}")),
    ];
    let command = |(purpose, command): (&str, String)| NextCommand {
        purpose: purpose.to_owned(),
        command: format!("metal-candle {command}"),
    };
    commands.map(command).to_vec()
}

/// One word of a shell's command line.
pub(crate) fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@,+=%".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use metal_candle::train::events::{Finished, Sample, Started, TrainEvent};

    use super::*;

    #[test]
    fn commands_come_with_the_end_and_are_quoted() {
        let mut history = History::default();
        history.add(TrainEvent::Started(Started { model: "org/name".to_owned(), ..Started::default() }));
        history.add(TrainEvent::Sample(Sample { prompt: "What's $HOME?".to_owned(), ..Sample::default() }));
        assert!(next_commands(&history, Path::new("run")).is_empty());
        history.add(TrainEvent::Finished(Finished::default()));
        let commands = next_commands(&history, Path::new("my run"));
        assert_eq!(
            commands[0].command,
            r"metal-candle generate -m org/name --adapter 'my run' --prompt 'What'\''s $HOME?'"
        );
        assert_eq!(commands[1].command, "metal-candle chat -m org/name --adapter 'my run'");
        let config = serde_json::json!({ "method": "full" });
        history.add(TrainEvent::Started(Started { config, ..Started::default() }));
        history.add(TrainEvent::Finished(Finished::default()));
        assert_eq!(next_commands(&history, Path::new("run"))[1].command, "metal-candle chat -m run");
    }
}
