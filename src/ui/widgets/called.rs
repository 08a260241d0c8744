//! A name of its own for a control that looks like others, e.g. "Remove robot" for one of many buttons "Remove".

use egui::Response;

/// What screen readers and tests call `response`.
pub fn called(response: Response, name: &str) -> Response {
    response.ctx.accesskit_node_builder(response.id, |node| node.set_label(name));
    response
}
