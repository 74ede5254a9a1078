// An application that embeds the runner: a streamed answer, one that another thread stops, tokens and back, two texts
// compared, and errors.
//
//   cc -Iffi/include examples/embed.c -Ltarget/release -lfastrun -lm -lpthread -o embed && ./embed model.fib

#include <fastrun.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(FastrunStatus status, const char *what) {
  if (status == FASTRUN_STATUS_OK) return;
  fprintf(stderr, "%s: %s\n", what, fastrun_last_error());
  exit(1);
}

// Prints an answer as it comes; its finish reason, which is constant.
static const char *print_answer(const FastrunGeneration *answer) {
  const char *reason = NULL;
  FastrunStatus status;
  while ((status = fastrun_next(answer)) == FASTRUN_STATUS_OK) {
    fwrite(fastrun_text(answer), 1, fastrun_text_length(answer), stdout);
    fflush(stdout);
    if (fastrun_finish_reason(answer)) {
      reason = fastrun_finish_reason(answer);
      printf("\n[%s] %s\n", reason, fastrun_update_json(answer));
    }
  }
  if (status != FASTRUN_STATUS_END) check(status, "next");
  return reason ? reason : "none";
}

static void *stop_it(void *answer) {
  fastrun_cancel(answer);
  return NULL;
}

static void answer_a_chat(const FastrunRunner *runner) {
  FastrunGeneration *answer;
  check(fastrun_generate(runner,
                         "{\"messages\": [{\"role\": \"user\", \"content\": \"What is the capital of France?\"}],"
                         " \"temperature\": 0, \"max_tokens\": 32}",
                         &answer),
        "generate");
  print_answer(answer);
  fastrun_generation_free(answer);
}

// An answer that would never end, stopped by another thread.
static void stop_an_answer(const FastrunRunner *runner) {
  FastrunGeneration *answer;
  check(fastrun_generate(runner, "{\"prompt\": \"One, two,\", \"ignore_eos\": true}", &answer), "generate");
  pthread_t thread;
  if (pthread_create(&thread, NULL, stop_it, answer) != 0) exit(1);
  const char *reason = print_answer(answer);
  pthread_join(thread, NULL);
  if (strcmp(reason, "cancelled") != 0) {
    fprintf(stderr, "the answer ended by %s\n", reason);
    exit(1);
  }
  fastrun_generation_free(answer);
}

static void tokens_and_back(const FastrunRunner *runner) {
  const char *text = "Tokens and back: naïve café.";
  size_t count, length;
  check(fastrun_tokenize(runner, text, strlen(text), false, false, NULL, 0, &count), "tokenize");
  uint32_t *ids = malloc(count * sizeof *ids);
  check(fastrun_tokenize(runner, text, strlen(text), false, false, ids, count, &count), "tokenize");
  check(fastrun_detokenize(runner, ids, count, false, NULL, 0, &length), "detokenize");
  char *back = malloc(length + 1);
  check(fastrun_detokenize(runner, ids, count, false, back, length + 1, &length), "detokenize");
  printf("%zu tokens: %s\n", count, back);
  if (strcmp(text, back) != 0) exit(1);
  free(back);
  free(ids);
}

// The dot product of two directions of length 1: 1 where they are the same.
static void compare(const FastrunRunner *runner) {
  const char *inputs[] = {"{\"prompt\": \"A cat sat on the mat.\"}", "{\"prompt\": \"A dog lay on the rug.\"}"};
  float *values[2];
  size_t count = 0;
  for (int i = 0; i < 2; i++) {
    check(fastrun_embed(runner, inputs[i], NULL, 0, &count), "embed");
    values[i] = malloc(count * sizeof **values);
    check(fastrun_embed(runner, inputs[i], values[i], count, &count), "embed");
  }
  double similarity = 0;
  for (size_t i = 0; i < count; i++) similarity += (double)values[0][i] * values[1][i];
  printf("similarity: %.3f, of %zu values\n", similarity, count);
  free(values[0]);
  free(values[1]);
}

static void mistakes(const FastrunRunner *runner) {
  FastrunGeneration *answer;
  FastrunStatus status = fastrun_generate(runner, "{\"prompt\": \"\", \"temprature\": 1}", &answer);
  printf("a misspelt field: status %d: %s\n", status, fastrun_last_error());
  FastrunRunner *none;
  status = fastrun_open("no-such-file.fib", NULL, &none);
  printf("no file: status %d: %s\n", status, fastrun_last_error());
}

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: embed model.fib\n");
    return 2;
  }
  if (fastrun_abi_version() != FASTRUN_ABI_VERSION) {
    fprintf(stderr, "fastrun.h is not of this libfastrun\n");
    return 1;
  }
  FastrunRunner *runner;
  check(fastrun_open(argv[1], "{\"threads\": 2}", &runner), "open");
  printf("fastrun %s: %s\n", fastrun_version(), fastrun_model_info(runner));
  answer_a_chat(runner);
  stop_an_answer(runner);
  tokens_and_back(runner);
  compare(runner);
  mistakes(runner);
  fastrun_close(runner);
  return 0;
}
