#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "check_collective.h"
#include "done_collective.h"
#include "mirabelle/comm/collective_bytes.h"
#include "mirabelle/comm/communicator.h"
#include "mirabelle/core/activity.h"
#include "mirabelle/core/unique_handle.h"
#include "mpi_collective.h"

#ifdef __SANITIZE_ADDRESS__
// Open MPI leaks by itself; programs that start it do not look for leaks.
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }
#endif

namespace mirabelle {
namespace {

/// Calls `body(data, bytes)` for pieces of at most `max_elements`; MPI counts are ints.
template <typename Body>
void for_each_piece(const TensorView& x, int64_t max_elements, Body&& body) {
  const int64_t max_bytes = max_elements * size_in_bytes(x.dtype);
  for (int64_t begin = 0; begin < x.bytes(); begin += max_bytes) {
    body(static_cast<char*>(x.data) + begin,
         static_cast<int>(std::min(max_bytes, x.bytes() - begin)));
  }
}

/// MPI_Comm_free is collective, so not while an exception unwinds this rank alone.
void free_communicator(MPI_Comm communicator) {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized || std::uncaught_exceptions() > 0) return;
  const Activity activity("MPI_Comm_free", "same");
  MPI_Comm_free(&communicator);
}
using CommHandle = UniqueHandle<MPI_Comm, free_communicator>;

class MpiCommunicator : public Communicator {
 public:
  MpiCommunicator(CommHandle handle, const std::string& group_name, int64_t max_elements,
                  std::shared_ptr<MpiProgress> progress)
      : Communicator(group_name), handle_(std::move(handle)) {
    group_.comm = comm();
    group_.name = group_name;
    group_.max_message_elements = max_elements;
    group_.progress = std::move(progress);
    MPI_CHECK(MPI_Comm_set_errhandler(comm(), MPI_ERRORS_RETURN));
    MPI_CHECK(MPI_Comm_rank(comm(), &group_.rank));
    MPI_CHECK(MPI_Comm_size(comm(), &group_.size));
  }

  int rank() const override { return group_.rank; }
  int size() const override { return group_.size; }
  std::string name() const override { return "mpi"; }
  std::map<std::string, int64_t> traffic() const override { return traffic_; }

  std::unique_ptr<PendingCollective> start_all_reduce(const TensorView& x, ReduceOp op,
                                                      const Stream&) const override {
    check_host("all_reduce", x);
    const int64_t n = x.num_elements();
    const bool is_small = x.bytes() <= kSmallAllReduceBytes && n <= group_.max_message_elements;
    return start({.operation = "all_reduce",
                  .whole = x,
                  .piece_elements = is_small ? n : (n + size() - 1) / size(),
                  .all_own_all = is_small,
                  .reduces = true,
                  .gathers = !is_small,
                  .op = op});
  }

  std::unique_ptr<PendingCollective> start_reduce_scatter(const TensorView& out,
                                                          const TensorView& x, ReduceOp op,
                                                          const Stream&) const override {
    check_parts("reduce_scatter", x, out, size());
    if (size() == 1) copy_on_host(out, x);
    return start({.operation = "reduce_scatter",
                  .whole = x,
                  .piece_elements = out.num_elements(),
                  .reduces = true,
                  .op = op,
                  .reduced = out.data});
  }

  std::unique_ptr<PendingCollective> start_all_gather(const TensorView& out, const TensorView& x,
                                                      const Stream&) const override {
    check_parts("all_gather", out, x, size());
    copy_on_host(out.reshaped({size(), x.num_elements()}).rows(rank(), rank() + 1), x);
    return start({.operation = "all_gather",
                  .whole = out,
                  .piece_elements = x.num_elements(),
                  .gathers = true});
  }

  void broadcast(const TensorView& x, int root, const Stream&) const override {
    check_host("broadcast", x);
    check_peer("broadcast", root, size());
    if (rank() == root && size() > 1) traffic_["broadcast"] += x.bytes();
    for_each_piece(x, group_.max_message_elements, [&](void* data, int bytes) {
      finish("broadcast", [&](MPI_Request* request) {
        return MPI_Ibcast(data, bytes, MPI_BYTE, root, comm(), request);
      });
    });
  }

  void send(const TensorView& x, int destination, const Stream&) const override {
    check_host("send", x);
    check_peer("send", destination, size());
    MIRABELLE_CHECK(destination != rank(), "rank ", rank(), " sends to itself");
    traffic_["send"] += x.bytes();
    for_each_piece(x, group_.max_message_elements, [&](void* data, int bytes) {
      finish("send", [&](MPI_Request* request) {
        return MPI_Isend(data, bytes, MPI_BYTE, destination, kTag, comm(), request);
      });
    });
  }

  void recv(const TensorView& x, int source, const Stream&) const override {
    check_host("recv", x);
    check_peer("recv", source, size());
    MIRABELLE_CHECK(source != rank(), "rank ", rank(), " receives from itself");
    for_each_piece(x, group_.max_message_elements, [&](void* data, int bytes) {
      const MPI_Status status = finish("recv", [&](MPI_Request* request) {
        return MPI_Irecv(data, bytes, MPI_BYTE, source, kTag, comm(), request);
      });
      int received = 0;
      MPI_CHECK(MPI_Get_count(&status, MPI_BYTE, &received));
      MIRABELLE_CHECK(received == bytes, "recv from rank ", source, " wanted ", bytes,
                      " bytes, got ", received);
    });
  }

  void barrier() const override {
    finish("barrier", [&](MPI_Request* request) { return MPI_Ibarrier(comm(), request); });
  }

  std::unique_ptr<Communicator> split(int color, int key,
                                      const std::string& group_name) const override {
    MIRABELLE_CHECK(color >= 0, "split wants a colour of at least 0, not ", color);
    const Activity activity("split", this->group_name());
    MPI_Comm group = MPI_COMM_NULL;
    MPI_CHECK(MPI_Comm_split(comm(), color, key, &group));
    return std::make_unique<MpiCommunicator>(CommHandle(group), group_name,
                                             group_.max_message_elements, group_.progress);
  }

 private:
  static constexpr int kTag = 0;

  MPI_Comm comm() const { return handle_.get(); }

  std::unique_ptr<PendingCollective> start(const MpiCollective::Task& task) const {
    if (size() == 1) return std::make_unique<DoneCollective>();
    return std::make_unique<MpiCollective>(group_, task, traffic_[task.operation]);
  }

  /// Starts a non-blocking operation of MPI and waits for it, while collectives go on.
  template <typename Start>
  MPI_Status finish(const char* operation, Start start) const {
    const auto check = [&](int code) {
      MIRABELLE_CHECK(code == MPI_SUCCESS, operation, ": ", mpi_error_text(code));
    };
    const Activity activity(operation, group_name());
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_Status status;
    check(start(&request));
    for (int done = 0; !done;) {
      check(MPI_Test(&request, &done, &status));
      group_.progress->poll();
    }
    return status;
  }

  CommHandle handle_;
  mutable MpiGroup group_;
  mutable std::map<std::string, int64_t> traffic_;
};

bool mpi_is_running() {
  int initialized = 0, finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  return initialized && !finalized;
}

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(int64_t max_message_elements) {
  MIRABELLE_CHECK(mpi_is_running(), "make_mpi_communicator wants a living MpiSession");
  const Activity activity("MPI_Comm_dup", "world");
  MPI_Comm duplicate = MPI_COMM_NULL;
  MPI_CHECK(MPI_Comm_dup(MPI_COMM_WORLD, &duplicate));
  return std::make_unique<MpiCommunicator>(CommHandle(duplicate), "world", max_message_elements,
                                           std::make_shared<MpiProgress>());
}

MpiSession::MpiSession(int* argc, char*** argv) {
  int initialized = 0, provided = 0;
  MPI_Initialized(&initialized);
  MIRABELLE_CHECK(!initialized, "a process makes only one MpiSession");
  // FUNNELED: OpenMP threads compute, the main thread alone calls MPI
  const Activity activity("MPI_Init", "world");
  MPI_CHECK(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided));
  MPI_CHECK(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
  MIRABELLE_CHECK(provided >= MPI_THREAD_FUNNELED,
                  "this MPI gives no thread support (wanted MPI_THREAD_FUNNELED)");
}

MpiSession::~MpiSession() {
  // MPI_Finalize waits for the other ranks; when an exception ends this one they may never come
  if (std::uncaught_exceptions() > 0 || !mpi_is_running()) return;
  const Activity activity("MPI_Finalize", "world");
  MPI_Finalize();
}

void abort_job(int exit_status) {
  std::fflush(nullptr);
  int size = 1;
  if (mpi_is_running()) MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (size > 1) MPI_Abort(MPI_COMM_WORLD, exit_status);
  std::_Exit(exit_status);
}

std::string mpi_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  MPI_CHECK(MPI_Get_library_version(text, &length));
  return std::string(text).substr(0, std::string(text).find(','));  // the rest is who built it
}

std::string broadcast_text(const Communicator& communicator, const std::string& text, int root) {
  const Stream host;
  int64_t bytes = static_cast<int64_t>(text.size());
  communicator.broadcast(view_of(&bytes, {1}), root, host);
  std::string result = communicator.rank() == root ? text : std::string(bytes, '\0');
  communicator.broadcast(view_of(reinterpret_cast<uint8_t*>(result.data()), {bytes}), root, host);
  return result;
}

std::vector<std::string> all_gather_texts(const Communicator& communicator,
                                          const std::string& text) {
  const Stream host;
  const int64_t size = communicator.size();
  int64_t bytes = static_cast<int64_t>(text.size());
  std::vector<int64_t> all_bytes(size);
  communicator.all_gather(view_of(all_bytes.data(), {size}), view_of(&bytes, {1}), host);
  const int64_t row = *std::max_element(all_bytes.begin(), all_bytes.end());
  std::string padded = text, all(size * row, '\0');
  padded.resize(row);
  communicator.all_gather(view_of(reinterpret_cast<uint8_t*>(all.data()), {size * row}),
                          view_of(reinterpret_cast<uint8_t*>(padded.data()), {row}), host);
  std::vector<std::string> texts;
  for (int64_t rank = 0; rank < size; ++rank) {
    texts.push_back(all.substr(rank * row, all_bytes[rank]));
  }
  return texts;
}

}  // namespace mirabelle
