//! `triptych queue`

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use crate::cli::{Progress, Shell, sentence, train};
use crate::engine::Result;
use crate::engine::queue::{self, Entry, Order, Queue, State};
use crate::engine::words::counted;

#[derive(clap::Args)]
pub struct Args {
    /// Folder of the queue, one TOML file for each training; one in your data folder if left out
    #[arg(long, global = true, value_name = "DIR")]
    queue: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Put a training at the end of the queue; same arguments as `triptych train`
    Add(Box<train::Args>),
    /// Show what waits, runs, is done or has failed, in order
    List,
    /// Teach what waits, one after the other; one that fails does not stop the rest (exit code 1 then)
    ///
    /// Ctrl+C stops after saving; the order that was running goes on from there the next time.
    Run,
    /// Take orders out of the queue; what they have written stays
    Remove {
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
    /// Put an order at another position
    Move {
        id: String,
        /// As `list` counts, from 1; past the end is the end
        position: NonZeroUsize,
    },
    /// Let failed or finished orders wait again; they go on from what they had saved
    Retry {
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

pub fn run(args: &Args, shell: &Shell) -> Result<ExitCode> {
    let queue = Queue::open(match &args.queue {
        Some(folder) => folder.clone(),
        None => queue::default_folder()?,
    });
    match &args.command {
        Command::Add(training) => {
            let asked = training.asked()?;
            let order = Order::new(&asked.model, &asked.concepts, &asked.training)?;
            let entry = queue.add(&order)?;
            shell.print(&json!({ "id": entry.id, "path": entry.path }), || {
                format!("{} waits in {}", entry.id, entry.path.display())
            })?;
        }
        Command::List => list(&queue, shell)?,
        Command::Run => return teach(&queue, shell),
        Command::Remove { ids } => {
            ids.iter().try_for_each(|id| queue.remove(id))?;
            list(&queue, shell)?;
        }
        Command::Move { id, position } => {
            queue.move_to(id, position.get() - 1)?;
            list(&queue, shell)?;
        }
        Command::Retry { ids } => {
            ids.iter().try_for_each(|id| queue.retry(id))?;
            list(&queue, shell)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(queue: &Queue, shell: &Shell) -> Result<()> {
    let entries = queue.list()?;
    let orders: Vec<Value> = entries
        .iter()
        .map(|Entry { id, path, order, .. }| match order {
            Ok(order) => json!({ "id": id, "path": path, "order": order }),
            Err(error) => json!({ "id": id, "path": path, "error": sentence(error) }),
        })
        .collect();
    shell.print(&json!({ "folder": queue.folder(), "orders": orders }), || match entries.is_empty() {
        true => format!("The queue is empty: {}", queue.folder().display()),
        false => entries.iter().enumerate().map(|(i, entry)| format!("{:>3}  {}\n", i + 1, line(entry))).collect(),
    })
}

fn line(entry: &Entry) -> String {
    let indented = |text: &str| text.lines().map(|line| format!("\n       {}", line.trim())).collect::<String>();
    let order = match &entry.order {
        Ok(order) => order,
        Err(error) => return format!("{}  unreadable{}", entry.id, indented(&error.to_string())),
    };
    let state = match order.state {
        State::Waiting => "waiting",
        State::Running => "running",
        State::Done => "done",
        State::Failed => "failed",
    };
    let class = order.class.as_ref().map(|class| format!(" {class}")).unwrap_or_default();
    let together: String = order.together.iter().map(|other| format!(" and {}", other.token)).collect();
    format!(
        "{}  {state}  {}{class}{together} by {}, {}{}",
        entry.id,
        order.token,
        order.method,
        order.out.display(),
        indented(order.error.as_deref().unwrap_or_default()),
    )
}

fn teach(queue: &Queue, shell: &Shell) -> Result<ExitCode> {
    let mut progress = Progress::new(shell.json);
    let session = shell.session(&mut progress)?;
    let ran = queue.run(&session, &mut progress.watch())?;
    let failed: Vec<Value> =
        ran.failed.iter().map(|(id, error)| json!({ "id": id, "error": sentence(error) })).collect();
    shell.print(&json!({ "done": ran.done, "failed": failed }), || {
        if ran.done.is_empty() && ran.failed.is_empty() {
            return "Nothing waits in the queue".into();
        }
        let failed: String = ran.failed.iter().map(|(id, error)| format!("\n{id} failed: {error}")).collect();
        format!("{} taught, {} failed{failed}", counted(ran.done.len(), "order"), ran.failed.len())
    })?;
    Ok(ExitCode::from(u8::from(!ran.failed.is_empty())))
}
