#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

#include "check_collective.h"
#include "mirabelle/comm/communicator.h"
#include "mirabelle/core/buffer.h"
#include "mirabelle/core/unique_handle.h"
#include "mpi_check.h"

#ifdef __SANITIZE_ADDRESS__
// Open MPI leaks by itself; programs that start it do not look for leaks.
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }
#endif

namespace mirabelle {
namespace {

/// Elements of one piece of an all-reduce under way. Open MPI 4.1 runs a non-blocking all-reduce of
/// 64 MiB at half the speed of the blocking one; in pieces of 256 KiB, which stay in the cache
/// between being received and being added, both take the same time.
constexpr int64_t kPieceElements = 1 << 16;

MPI_Datatype mpi_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return MPI_FLOAT;
    case DType::kFloat64:
      return MPI_DOUBLE;
    case DType::kInt32:
      return MPI_INT32_T;
    case DType::kInt64:
      return MPI_INT64_T;
    case DType::kUint8:
      return MPI_UINT8_T;
    case DType::kBFloat16:
      return MPI_UINT16_T;  // only moved: check_reducible
  }
  throw_error(ErrorKind::kOther, "no MPI type for dtype ", static_cast<int>(dtype));
}

MPI_Op mpi_op(ReduceOp op) {
  return op == ReduceOp::kSum ? MPI_SUM : op == ReduceOp::kMax ? MPI_MAX : MPI_MIN;
}

/// Calls `body(data, count)` for pieces of at most `max_elements`; MPI counts are ints.
template <typename Body>
void for_each_piece(const TensorView& x, int64_t max_elements, Body&& body) {
  const int64_t num_elements = x.num_elements();
  for (int64_t begin = 0; begin < num_elements; begin += max_elements) {
    body(static_cast<char*>(x.data) + begin * size_in_bytes(x.dtype),
         static_cast<int>(std::min(max_elements, num_elements - begin)));
  }
}

/// MPI_Comm_free is collective, so not while an exception unwinds this rank alone.
void free_communicator(MPI_Comm communicator) {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (!finalized && std::uncaught_exceptions() == 0) MPI_Comm_free(&communicator);
}
using CommHandle = UniqueHandle<MPI_Comm, free_communicator>;

class MpiAllReduce : public PendingCollective {
 public:
  explicit MpiAllReduce(std::vector<MPI_Request> requests) : requests_(std::move(requests)) {}

  void poll() override {
    if (done_) return;
    int all_done = 0;
    MPI_CHECK(MPI_Testall(count(), requests_.data(), &all_done, MPI_STATUSES_IGNORE));
    done_ = all_done != 0;
  }
  void wait(const Stream&) override {
    if (!done_) MPI_CHECK(MPI_Waitall(count(), requests_.data(), MPI_STATUSES_IGNORE));
    done_ = true;
  }

 private:
  int count() const { return static_cast<int>(requests_.size()); }

  std::vector<MPI_Request> requests_;
  bool done_ = false;
};

class MpiCommunicator : public Communicator {
 public:
  MpiCommunicator(CommHandle handle, int64_t max_elements)
      : handle_(std::move(handle)), max_elements_(max_elements) {
    MPI_CHECK(MPI_Comm_set_errhandler(comm(), MPI_ERRORS_RETURN));
    MPI_CHECK(MPI_Comm_rank(comm(), &rank_));
    MPI_CHECK(MPI_Comm_size(comm(), &size_));
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  std::string name() const override { return "mpi"; }

  void all_reduce(const TensorView& x, ReduceOp op, const Stream&) const override {
    check_host("all_reduce", x);
    check_reducible("all_reduce", x);
    for_each_piece(x, max_elements_, [&](void* data, int count) {
      MPI_CHECK(MPI_Allreduce(MPI_IN_PLACE, data, count, mpi_type(x.dtype), mpi_op(op), comm()));
    });
  }

  std::unique_ptr<PendingCollective> start_all_reduce(const TensorView& x, ReduceOp op,
                                                      const Stream&) const override {
    check_host("all_reduce", x);
    check_reducible("all_reduce", x);
    std::vector<MPI_Request> requests;
    for_each_piece(x, std::min(max_elements_, kPieceElements), [&](void* data, int count) {
      requests.push_back(MPI_REQUEST_NULL);
      MPI_CHECK(MPI_Iallreduce(MPI_IN_PLACE, data, count, mpi_type(x.dtype), mpi_op(op), comm(),
                               &requests.back()));
    });
    return std::make_unique<MpiAllReduce>(std::move(requests));
  }

  void all_gather(const TensorView& out, const TensorView& x, const Stream& stream) const override {
    check_parts("all_gather", out, x, size_);
    if (x.empty()) return;
    const TensorView parts = out.reshaped({size_, x.num_elements()});
    const TensorView mine = parts.rows(rank_, rank_ + 1);
    if (mine.data != x.data) std::memcpy(mine.data, x.data, static_cast<size_t>(x.bytes()));
    if (out.num_elements() <= max_elements_) {
      MPI_CHECK(MPI_Allgather(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, out.data,
                              static_cast<int>(x.num_elements()), mpi_type(x.dtype), comm()));
      return;
    }
    for (int root = 0; root < size_; ++root) broadcast(parts.rows(root, root + 1), root, stream);
  }

  void reduce_scatter(const TensorView& out, const TensorView& x, ReduceOp op,
                      const Stream&) const override {
    check_parts("reduce_scatter", x, out, size_);
    check_reducible("reduce_scatter", x);
    if (out.empty()) return;
    const TensorView parts = x.reshaped({size_, out.num_elements()});
    if (x.num_elements() <= max_elements_) {
      // MPI does not allow the result to overwrite a part of the operand
      const bool overlap = parts.rows(rank_, rank_ + 1).data == out.data;
      const Buffer copy = overlap ? Buffer({out.num_elements()}, out.dtype) : Buffer();
      void* const result = overlap ? copy.data() : out.data;
      MPI_CHECK(MPI_Reduce_scatter_block(x.data, result, static_cast<int>(out.num_elements()),
                                         mpi_type(x.dtype), mpi_op(op), comm()));
      if (overlap) std::memcpy(out.data, result, static_cast<size_t>(out.bytes()));
      return;
    }
    for (int root = 0; root < size_; ++root) {
      reduce_to(root, out, parts.rows(root, root + 1), op);
    }
  }

  void broadcast(const TensorView& x, int root, const Stream&) const override {
    check_host("broadcast", x);
    check_peer("broadcast", root, size_);
    for_each_piece(x, max_elements_, [&](void* data, int count) {
      MPI_CHECK(MPI_Bcast(data, count, mpi_type(x.dtype), root, comm()));
    });
  }

  void send(const TensorView& x, int destination, const Stream&) const override {
    check_host("send", x);
    check_peer("send", destination, size_);
    MIRABELLE_CHECK(destination != rank_, "rank ", rank_, " sends to itself");
    for_each_piece(x, max_elements_, [&](void* data, int count) {
      MPI_CHECK(MPI_Send(data, count, mpi_type(x.dtype), destination, kTag, comm()));
    });
  }

  void recv(const TensorView& x, int source, const Stream&) const override {
    check_host("recv", x);
    check_peer("recv", source, size_);
    MIRABELLE_CHECK(source != rank_, "rank ", rank_, " receives from itself");
    for_each_piece(x, max_elements_, [&](void* data, int count) {
      MPI_Status status;
      int received = 0;
      MPI_CHECK(MPI_Recv(data, count, mpi_type(x.dtype), source, kTag, comm(), &status));
      MPI_CHECK(MPI_Get_count(&status, mpi_type(x.dtype), &received));
      MIRABELLE_CHECK(received == count, "recv from rank ", source, " wanted ", count,
                      " elements, got ", received);
    });
  }

  void barrier() const override { MPI_CHECK(MPI_Barrier(comm())); }

  std::unique_ptr<Communicator> split(int color, int key) const override {
    MIRABELLE_CHECK(color >= 0, "split wants a colour of at least 0, not ", color);
    MPI_Comm group = MPI_COMM_NULL;
    MPI_CHECK(MPI_Comm_split(comm(), color, key, &group));
    return std::make_unique<MpiCommunicator>(CommHandle(group), max_elements_);
  }

 private:
  static constexpr int kTag = 0;

  MPI_Comm comm() const { return handle_.get(); }

  /// out on rank `root` = op over ranks of x.
  void reduce_to(int root, const TensorView& out, const TensorView& x, ReduceOp op) const {
    const int64_t bytes_ahead = static_cast<char*>(out.data) - static_cast<char*>(x.data);
    for_each_piece(x, max_elements_, [&](void* data, int count) {
      void* const result = static_cast<char*>(data) + bytes_ahead;
      const bool in_place = rank_ == root && result == data;
      MPI_CHECK(MPI_Reduce(in_place ? MPI_IN_PLACE : data, rank_ == root ? result : nullptr, count,
                           mpi_type(x.dtype), mpi_op(op), root, comm()));
    });
  }

  CommHandle handle_;
  int64_t max_elements_;
  int rank_ = 0;
  int size_ = 0;
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
  MPI_Comm duplicate = MPI_COMM_NULL;
  MPI_CHECK(MPI_Comm_dup(MPI_COMM_WORLD, &duplicate));
  return std::make_unique<MpiCommunicator>(CommHandle(duplicate), max_message_elements);
}

MpiSession::MpiSession(int* argc, char*** argv) {
  int initialized = 0, provided = 0;
  MPI_Initialized(&initialized);
  MIRABELLE_CHECK(!initialized, "a process makes only one MpiSession");
  // FUNNELED: OpenMP threads compute, the main thread alone calls MPI
  MPI_CHECK(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided));
  MPI_CHECK(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
  MIRABELLE_CHECK(provided >= MPI_THREAD_FUNNELED,
                  "this MPI gives no thread support (wanted MPI_THREAD_FUNNELED)");
}

MpiSession::~MpiSession() {
  // MPI_Finalize waits for the other ranks; when an exception ends this one they may never come
  if (std::uncaught_exceptions() == 0 && mpi_is_running()) MPI_Finalize();
}

void abort_job(int exit_status) {
  std::fflush(nullptr);
  int size = 1;
  if (mpi_is_running()) MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (size > 1) MPI_Abort(MPI_COMM_WORLD, exit_status);
  std::_Exit(exit_status);
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
