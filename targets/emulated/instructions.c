/* Counts the A64 instructions that a program executes between marks, by class: a plugin for QEMU's user mode.
 *
 * A mark is isatty(0x7e570000 | tag), a question about a file that nobody opened: it costs a program next
 * to nothing, in Python too. At each one a line goes to the file that PAREDOWN_COUNT names:
 *
 *   TAG TOTAL LOAD_STORE SIMD BRANCH INTEGER OTHER      counted since the program began
 *
 * The classes are the A64 encoding's own top-level groups (bits 28 to 25, Arm Architecture Reference Manual,
 * C4.1): a load of a vector register is a load. Counts are exact, for one thread: they are added when a block
 * of instructions begins, and a system call ends one.
 *
 * The declarations are those of QEMU's plugin API version 1 (QEMU 6 to 8), as far as they are used.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { QEMU_PLUGIN_INLINE_ADD_U64 };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
                                           void (*callback)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *block, int operation, void *counter,
                                              uint64_t amount);
void qemu_plugin_register_vcpu_syscall_cb(
    qemu_plugin_id_t id,
    void (*callback)(qemu_plugin_id_t, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                     uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *block, size_t index);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *instruction);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

enum { TOTAL, LOAD_STORE, SIMD, BRANCH, INTEGER, OTHER, CLASSES };
enum { IOCTL = 29, MARK = 0x7e57 };

static uint64_t counts[CLASSES];
static FILE *file;

static int class_of(uint32_t instruction)
{
    unsigned group = instruction >> 25 & 15;
    if ((group & 5) == 4) return LOAD_STORE;                           /* x1x0 */
    if ((group & 7) == 7) return SIMD;                                 /* x111, scalar floating point too */
    if ((group & 14) == 10) return BRANCH;                             /* 101x, system instructions too */
    if ((group & 14) == 8 || (group & 7) == 5) return INTEGER;         /* 100x immediate, x101 register */
    return OTHER;
}

static void on_block(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    uint64_t in_block[CLASSES] = {0};
    in_block[TOTAL] = qemu_plugin_tb_n_insns(block);
    for (size_t i = 0; i < in_block[TOTAL]; i++) {
        uint32_t instruction;
        memcpy(&instruction, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof instruction);
        in_block[class_of(instruction)]++;
    }
    for (int i = 0; i < CLASSES; i++) {
        if (in_block[i] == 0) continue;
        qemu_plugin_register_vcpu_tb_exec_inline(block, QEMU_PLUGIN_INLINE_ADD_U64, &counts[i], in_block[i]);
    }
}

static void on_syscall(qemu_plugin_id_t id, unsigned vcpu, int64_t number, uint64_t descriptor, uint64_t a2,
                       uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)vcpu, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != IOCTL || (uint32_t)descriptor >> 16 != MARK) return;
    /* Opened at the first mark: of a shell and what it starts, only the program that marks has a file. */
    if (file == NULL && (file = fopen(getenv("PAREDOWN_COUNT"), "w")) == NULL) {
        perror("the instruction counts cannot be written");
        exit(5);
    }
    fprintf(file, "%u", (unsigned)(descriptor & 0xffff));
    for (int i = 0; i < CLASSES; i++) fprintf(file, " %" PRIu64, counts[i]);
    fputc('\n', file);
    fflush(file);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    (void)info, (void)argc, (void)argv;
    if (getenv("PAREDOWN_COUNT") == NULL) return 0;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_block);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    return 0;
}
