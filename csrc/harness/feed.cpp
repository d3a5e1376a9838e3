#include "compressor/harness.h"

namespace compressor {

Feed::Feed(const ort::Session& session, ort::Inputs inputs)
    : session_(&session), inputs_(std::move(inputs)), outputs_(session.outputs().size(), nullptr) {}

Feed::Feed(Feed&& other) noexcept
    : session_(other.session_), inputs_(std::move(other.inputs_)), outputs_(std::move(other.outputs_)),
      keeps_(other.keeps_) {
  other.outputs_.clear();
}

Feed::~Feed() {
  if (!outputs_.empty()) session_->release_outputs(outputs_.data());
}

void Feed::prepare() {
  run();
  if (!keeps_) return;
  // A model may refuse to write over what it gave before, such as a sequence or an output that is an input.
  void* status = session_->run_raw(inputs_, outputs_.data());
  if (status == nullptr) return;
  session_->library()->discard(status);
  keeps_ = false;
  session_->release_outputs(outputs_.data());
  run();
}

void Feed::after(void* status) {
  if (status != nullptr) session_->library()->check(status);
  session_->release_outputs(outputs_.data());
}

std::vector<ort::Output> Feed::outputs() {
  if (!keeps_) session_->library()->check(session_->run_raw(inputs_, outputs_.data()));
  std::vector<ort::Output> seen;
  for (void*& value : outputs_) {
    seen.push_back(session_->view(value));
    if (keeps_) continue;
    *seen.back().value.out() = value;  // whoever looks releases it
    value = nullptr;
  }
  return seen;
}

}  // namespace compressor
