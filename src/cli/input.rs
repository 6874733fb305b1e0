//! What a command reads beside its flags: files, standard input, variables, and answers at a terminal.
//! Secrets arrive this way rather than as arguments, which every user of the machine can see.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::process::{Command, Stdio};

use secrecy::SecretString;
use serde_json::Value;

use super::CliError;

/// Takes a flag's text as a secret, for clap.
pub(super) fn secret(text: &str) -> Result<SecretString, std::convert::Infallible> {
    Ok(SecretString::from(text))
}

/// Splits `name=value`, for clap.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it must look like `name=value`".into()),
    }
}

/// The value of an environment variable that the person named on the command line.
#[expect(
    clippy::disallowed_methods,
    reason = "which variable it is stands on the command line, not in the configuration"
)]
pub(super) fn variable(name: &str) -> Result<String, CliError> {
    std::env::var(name).map_err(|error| CliError::usage(format!("{name}: {error}")))
}

/// Reads a JSON document from a file, or from standard input when the name is `-`.
pub(super) fn json_file(name: &str) -> Result<Value, CliError> {
    let unusable = |error: &dyn std::fmt::Display| CliError::usage(format!("{name}: {error}"));
    let text = if name == "-" {
        standard_input()?
    } else {
        std::fs::read_to_string(name).map_err(|error| unusable(&error))?
    };
    serde_json::from_str(&text).map_err(|error| unusable(&error))
}

/// Reads a JSON value given as an argument.
pub(super) fn json_argument(flag: &str, text: &str) -> Result<Value, CliError> {
    serde_json::from_str(text)
        .map_err(|error| CliError::usage(format!("{flag} is not JSON: {error}")))
}

/// Everything on standard input.
pub(super) fn standard_input() -> Result<String, CliError> {
    let mut text = String::new();
    io::stdin()
        .read_to_string(&mut text)
        .map_err(|error| CliError::usage(format!("standard input: {error}")))?;
    Ok(text)
}

/// Whether there is somebody to ask.
pub(super) fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks for a value on the terminal; with `hidden`, what is typed is not shown.
pub(super) async fn ask(question: &str, hidden: Hidden) -> Result<String, CliError> {
    eprint!("{question}: ");
    io::stderr()
        .flush()
        .map_err(|error| CliError::Failed(error.to_string()))?;
    let echo = match hidden {
        Hidden::Yes => Some(EchoOff::start()),
        Hidden::No => None,
    };
    let read = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).map(|_| line)
    });
    let line = tokio::select! {
        line = read => line,
        _ = tokio::signal::ctrl_c() => {
            drop(echo);
            eprintln!();
            std::process::exit(130);
        }
    };
    if echo.is_some() {
        eprintln!();
    }
    match line {
        Ok(Ok(line)) => Ok(line.trim_end_matches(['\r', '\n']).to_owned()),
        Ok(Err(error)) => Err(CliError::usage(format!("standard input: {error}"))),
        Err(error) => Err(CliError::Failed(error.to_string())),
    }
}

/// Whether an answer is shown while it is typed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Hidden {
    /// It is a secret.
    Yes,
    /// It is not.
    No,
}

/// Keeps the terminal from showing what is typed, until it is dropped. `stty` does it: the system call
/// would need unsafe code.
struct EchoOff;

impl EchoOff {
    fn start() -> Self {
        stty("-echo");
        Self
    }
}

impl Drop for EchoOff {
    fn drop(&mut self) {
        stty("echo");
    }
}

fn stty(mode: &str) {
    // Without stty the answer is shown, which is a pity and not a failure.
    let _ = Command::new("stty")
        .arg(mode)
        .stdin(Stdio::inherit())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_needs_a_name() {
        assert_eq!(pair("password=a=b"), Ok(("password".into(), "a=b".into())));
        assert_eq!(pair("password="), Ok(("password".into(), String::new())));
        assert!(pair("=x").is_err());
        assert!(pair("password").is_err());
    }

    #[test]
    fn a_wrong_argument_is_named() {
        assert!(
            json_argument("--where", "{a: 1}")
                .unwrap_err()
                .to_string()
                .starts_with("--where is not JSON")
        );
        assert!(
            json_file("/nonexistent.json")
                .unwrap_err()
                .to_string()
                .starts_with("/nonexistent.json: ")
        );
        assert!(
            variable("SEMILAYER_TEST_UNSET")
                .unwrap_err()
                .to_string()
                .contains("SEMILAYER_TEST_UNSET")
        );
    }
}
