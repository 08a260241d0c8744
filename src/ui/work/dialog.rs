//! Native file dialogs, without stopping the window.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::ui::command::{Answer, Command, Question};
use crate::ui::work::{Post, Report};

/// Nobody closes a dialog sooner: it never opened.
const TOO_SOON: Duration = Duration::from_millis(400);

/// Opens the dialog; its answer comes as [`Report::Do`], or [`Report::NoDialog`] where none can open.
pub fn ask(question: Question, post: &Post) {
    if !can_open() {
        post.send(Report::NoDialog(question));
        return;
    }
    let Question { title, kind, ending, offered, then } = question;
    let mut dialog = rfd::AsyncFileDialog::new().set_title(title);
    if !ending.is_empty() {
        dialog = dialog.add_filter(ending, &[ending]);
    }
    if kind == Answer::NewFile {
        dialog = dialog.set_file_name(offered);
    }
    // Made here, because some systems open dialogs from the window's thread alone; waited for elsewhere.
    let (file, folder, new) = match kind {
        Answer::File => (Some(dialog.pick_file()), None, None),
        Answer::Folder => (None, Some(dialog.pick_folder()), None),
        Answer::NewFile => (None, None, Some(dialog.save_file())),
    };
    let start = Instant::now();
    let work = move |_: &Post| {
        let chosen = if let Some(file) = file {
            pollster::block_on(file)
        } else if let Some(folder) = folder {
            pollster::block_on(folder)
        } else {
            new.and_then(pollster::block_on)
        };
        Ok(chosen.map(|handle| handle.path().to_path_buf()))
    };
    post.spawn("dialog", work, move |answer| match answer {
        Ok(Some(path)) => Report::Do(then(with_ending(path, kind, ending))),
        _ if start.elapsed() < TOO_SOON => Report::NoDialog(question),
        _ => Report::Do(Command::DismissNotice),
    });
}

/// A new file gets the ending that its reader will look for.
pub fn with_ending(path: PathBuf, kind: Answer, ending: &str) -> PathBuf {
    let bare = kind == Answer::NewFile && !ending.is_empty() && path.extension().is_none();
    if bare { path.with_extension(ending) } else { path }
}

/// Whether a portal or zenity could answer; elsewhere than on Linux, dialogs are part of the system.
fn can_open() -> bool {
    if !cfg!(target_os = "linux") {
        return true;
    }
    let bus = std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some()
        || std::env::var_os("XDG_RUNTIME_DIR").is_some_and(|folder| PathBuf::from(folder).join("bus").exists());
    let zenity = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join("zenity").is_file()));
    bus || zenity
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_files_get_their_ending() {
        let named = |path: &str, kind| with_ending(path.into(), kind, "png");
        assert_eq!(named("a", Answer::NewFile), PathBuf::from("a.png"));
        assert_eq!(named("a.jpg", Answer::NewFile), PathBuf::from("a.jpg"));
        assert_eq!(named("a", Answer::File), PathBuf::from("a"));
    }
}
